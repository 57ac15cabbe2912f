-- Storage by budget: tokens that would be kept, and bytes of their features, scaled from what is stored.
-- reads: summaries
-- $budgets counts = 16,32,64,128,256: tokens an image
with kept as (
    select num_kept, count(*) as images from images group by num_kept
),
stored as (
    select sum(features_bytes)::bigint as features, sum(size_bytes - features_bytes)::bigint as tables from shards
),
wanted as (
    select
        budget,
        sum(least(num_kept, budget) * images)::bigint as tokens,
        sum(least(num_kept, budget) * images) / sum(num_kept * images) as share
    from kept, (select unnest($budgets) as budget)
    group by budget
)
select
    budget, tokens, round(100 * share, 1) as percent_of_stored,
    round(share * nullif(features, 0))::bigint as features_bytes, tables as tables_bytes
from wanted, stored
order by budget
