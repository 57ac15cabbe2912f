-- Sensitivity by place in the grid, over all tokens of a sample of images.
-- reads: sampled tokens
-- $share share = 0.05: of all images
-- $seed seed = 0: another one draws other images
select
    tile, row, col, count(*) as images, round(avg(sensitivity), 4) as sensitivity,
    round(100 * count(pick) / count(*), 1) as kept_percent
from sampled_tokens($share, $seed)
group by tile, row, col
order by tile, row, col
