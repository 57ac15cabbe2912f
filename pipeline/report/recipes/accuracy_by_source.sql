-- Accuracy by the file or folder that images came from, the worst first.
-- reads: summaries
-- needs: answers
-- $budget budget = fewest: of the answers
-- $limit count = 20: files or folders shown
with per_image as (
    select image_id, count(*) as n, sum(score) as s
    from answers
    where budget = $budget and score is not null
    group by image_id
)
select
    parse_dirpath(source, 'forward_slash') as came_from, count(*) as images, sum(n)::bigint as prompts,
    round(100 * sum(s) / sum(n), 2) as accuracy
from per_image join images using (image_id)
group by came_from
order by accuracy, came_from
limit $limit
