-- How many of the most sensitive tokens are not picked, because others like them were.
-- reads: sampled tokens
-- $k count = 64: tokens an image, of those images that have so many stored
-- $share share = 0.05: of all images
-- $seed seed = 0: another one draws other images
select
    dropped, count(*) as images, round(100 * count(*) / sum(count(*)) over (), 1) as percent
from (
    select
        $k - len(
            list_intersect(
                ranking[1:$k], list_transform(list_grade_up(sensitivity, 'desc')[1:$k], lambda place: place - 1)
            )
        ) as dropped
    from sampled_images($share, $seed)
    where num_kept >= $k and sensitivity is not null
)
group by dropped
order by dropped
