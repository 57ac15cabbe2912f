-- Where the very first token picked lies most often.
-- reads: kept tokens
-- $limit count = 10: places shown
select
    position[1].tile as tile, position[1].row as row, position[1].col as col, count(*) as images,
    round(100 * count(*) / sum(count(*)) over (), 2) as percent, round(avg(gain[1]), 4) as mean_gain
from images
group by 1, 2, 3
order by images desc, tile, row, col
limit $limit
