-- How many tokens have a gain within 1 % of the cut, so that little decides whether they are kept.
-- reads: kept tokens
-- $k count = 64: tokens an image, of those images that have more stored
-- $within share = 0.01: of the gain at the cut
select
    len(list_filter(gain, lambda g: abs(g - gain[$k]) <= $within * abs(gain[$k]))) - 1 as other_tokens,
    count(*) as images, round(100 * count(*) / sum(count(*)) over (), 1) as percent
from images
where num_kept > $k
group by other_tokens
order by other_tokens
