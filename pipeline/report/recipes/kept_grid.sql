-- Where in the grid the first tokens picked lie: the share of images that keep each place.
-- reads: kept tokens
-- $k count = 64: tokens an image
select
    place.tile as tile, place.row as row, place.col as col, count(*) as images,
    round(100 * count(*) / (select count(*) from images), 1) as percent
from (select unnest(position[1:$k]) as place from images)
group by all
order by all
