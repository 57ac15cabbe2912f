-- The images whose tokens are most alike in sensitivity, which gives a selection least to go by.
-- reads: summaries
-- $limit count = 20: images shown
select
    source, num_tokens as tokens, num_kept as kept,
    round(sensitivity_max::double / sensitivity_mean, 3) as max_over_mean,
    round(sensitivity_mean::double, 4) as sensitivity_mean, image_id
from images
where sensitivity_mean > 0
order by sensitivity_max::double / sensitivity_mean, image_id
limit $limit
