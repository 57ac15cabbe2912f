-- The slowest shards, and the stage that took most of their time.
-- reads: summaries
-- $limit count = 10: shards shown
with timed as (
    select
        *,
        seconds.read + seconds.decode + seconds.encode + seconds.score + seconds."select" + seconds.write as total
    from shards
)
select
    shard, images, round(total, 2) as seconds, round(1000 * total / nullif(images, 0), 2) as ms_an_image,
    case greatest(seconds.read, seconds.decode, seconds.encode, seconds.score, seconds."select", seconds.write)
        when seconds.encode then 'encode' when seconds.decode then 'decode' when seconds.read then 'read'
        when seconds.score then 'score' when seconds."select" then 'select' else 'write'
    end as slowest_stage,
    round(total / median(total) over (), 2) as of_median, batch_size
from timed
order by total desc, shard
limit $limit
