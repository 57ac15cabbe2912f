-- Accuracy by how far an image's most sensitive token stands out, in five groups of images.
-- reads: summaries
-- needs: answers
-- $budget budget = fewest: of the answers
with per_image as (
    select image_id, count(*) as n, sum(score) as s
    from answers
    where budget = $budget and score is not null
    group by image_id
),
spread as (
    select *, sensitivity_max::double / nullif(sensitivity_mean, 0) as max_over_mean
    from per_image join images using (image_id)
)
select
    fifth, count(*) as images, round(min(max_over_mean), 3) as max_over_mean_from,
    round(max(max_over_mean), 3) as up_to, sum(n)::bigint as prompts, round(100 * sum(s) / sum(n), 2) as accuracy
from (select *, ntile(5) over (order by max_over_mean, image_id) as fifth from spread where max_over_mean is not null)
group by fifth
order by fifth
