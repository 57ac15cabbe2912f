-- Where the time went: seconds of each stage over all shards.
-- reads: summaries
with stages as (
    unpivot (
        select
            sum(seconds.read) as read, sum(seconds.decode) as decode, sum(seconds.encode) as encode,
            sum(seconds.score) as score, sum(seconds."select") as "select", sum(seconds.write) as write
        from shards
    ) on columns(*) into name stage value seconds
)
select
    stage, round(seconds, 2) as seconds, round(100 * seconds / nullif(sum(seconds) over (), 0), 1) as percent,
    round(1000 * seconds / nullif((select sum(images) from shards), 0), 3) as ms_an_image
from stages
order by seconds desc, stage
