-- Which share of an image's stored gain its first tokens hold.
-- reads: kept tokens
-- $budgets counts = 8,16,32,64,128: tokens an image
select
    budget, count(*) as images, round(100 * avg(held), 1) as mean_percent,
    round(100 * quantile_cont(held, 0.05), 1) as low_percent
from (
    select
        unnest($budgets) as budget,
        unnest(list_transform($budgets, lambda k: list_sum(gain[1:k]) / nullif(list_sum(gain), 0))) as held
    from images
)
where held is not null
group by budget
order by budget
