-- Accuracy by type of prompt and budget, with intervals of 95 %: prompts of one image are taken together.
-- reads: summaries
-- needs: answers
with per_group as (
    -- Images in up to 65,536 groups by their hash: as independent as images, and fewer where these are millions.
    select type, budget, metric, count(*) as n, sum(score) as s, sum(tokens) as seen
    from answers
    where score is not null
    group by type, budget, metric, hash(image_id) % 65536
),
overall as (
    select
        type, budget, metric, count(*) as images, sum(n)::bigint as prompts, sum(seen) / sum(n) as tokens,
        sum(s) / sum(n) as mean,
        sqrt(
            greatest(0, sum(s * s) - 2 * mean * sum(s * n) + mean * mean * sum(n * n))
            * count(*) / nullif(count(*) - 1, 0)
        ) / sum(n) as error,
        -- One image has no interval: its error is null, which `greatest` would pass over.
        if(error is null, null, greatest(mean - 1.96 * error, 0)) as low,
        if(error is null, null, least(mean + 1.96 * error, 1)) as high
    from per_group
    group by type, budget, metric
)
select
    coalesce(type, '-') as type, budget, metric, round(tokens, 1) as tokens, prompts,
    round(100 * mean, 2) as accuracy, round(100 * low, 2) as low, round(100 * high, 2) as high
from overall
order by type, metric, tokens desc, budget
