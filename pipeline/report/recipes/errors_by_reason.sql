-- Failed inputs by reason, with an example.
-- reads: summaries
select
    reason, count(*) as inputs, count(*) filter (where prompt_id is not null) as prompts_alone,
    min(source) as example, arg_min(message, source) as message
from errors
group by reason
order by inputs desc, reason
