-- How sensitivity and gain are distributed over images: quantiles of their summaries.
-- reads: summaries
with quantiles as (
    select
        [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]::double[] as quantile,
        quantile_cont(sensitivity_mean::double, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) as sensitivity_mean,
        quantile_cont(
            sensitivity_max::double / nullif(sensitivity_mean, 0), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
        ) as max_over_mean,
        quantile_cont(last_gain::double, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) as last_gain
    from images
)
select
    unnest(quantile) as quantile, unnest(sensitivity_mean) as sensitivity_mean,
    unnest(max_over_mean) as max_over_mean, unnest(last_gain) as last_gain
from quantiles
