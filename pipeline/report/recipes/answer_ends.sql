-- How answers end, by budget: by themselves, cut short, or refused.
-- reads: summaries
-- needs: answers
select
    budget, finish_reason, count(*) as prompts,
    round(100 * count(*) / sum(count(*)) over (partition by budget), 2) as percent, min(message) as example
from answers
group by budget, finish_reason
order by budget, prompts desc, finish_reason
