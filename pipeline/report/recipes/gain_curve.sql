-- How the gain falls from pick to pick.
-- reads: kept tokens
-- $picks counts = 1,2,4,8,16,32,64,128,256: counted from 1
select
    pick, count(gain) as images, round(avg(gain), 4) as mean_gain,
    round(quantile_cont(gain::double, 0.05), 4) as low, round(quantile_cont(gain::double, 0.95), 4) as high
from (
    select unnest($picks) as pick, unnest(list_transform($picks, lambda p: gain[p])) as gain from images
)
where gain is not null
group by pick
order by pick
