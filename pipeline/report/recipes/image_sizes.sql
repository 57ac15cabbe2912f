-- Images by their grid of tokens: how many, how large, how much of them is kept.
-- reads: summaries
select
    grid.rows as rows, grid.cols as cols, grid.tiles as tiles, num_tokens as tokens, count(*) as images,
    round(avg(num_kept), 1) as kept, round(100 * sum(num_kept) / sum(num_tokens), 1) as kept_percent,
    median(width)::integer as median_width, median(height)::integer as median_height
from images
group by all
order by images desc, tokens, rows, cols
limit 50
