-- Sensitivity of tokens by when they were picked; those never picked come last.
-- reads: sampled tokens
-- $step count = 16: picks that are taken together
-- $share share = 0.05: of all images
-- $seed seed = 0: another one draws other images
select
    pick // $step * $step as first_pick, count(*) as tokens,
    round(avg(sensitivity), 4) as sensitivity, round(avg(gain), 4) as gain
from sampled_tokens($share, $seed)
group by first_pick
order by first_pick
