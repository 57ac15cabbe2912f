-- Which tiles the first tokens picked lie in.
-- reads: kept tokens
-- $k count = 64: tokens an image
select
    place.tile as tile, count(*) as tokens, round(100 * count(*) / sum(count(*)) over (), 1) as percent,
    round(avg(place.row), 2) as mean_row, round(avg(place.col), 2) as mean_col
from (select unnest(position[1:$k]) as place from images)
group by tile
order by tile
