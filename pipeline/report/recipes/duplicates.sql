-- Images that came more than once, by the number of input samples with the same bytes that have prompts.
-- reads: summaries
-- $limit count = 20: images shown
with repeated as (
    select image_id, count(distinct source) as samples, count(*) as prompts
    from prompts
    where image_id is not null
    group by image_id
    having samples > 1
    order by samples desc, image_id
    limit $limit
)
select source as first_sample, samples, prompts, image_id
from repeated left join images using (image_id)
order by samples desc, image_id
