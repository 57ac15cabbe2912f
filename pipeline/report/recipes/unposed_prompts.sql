-- Prompts that can't be posed, by status, with an example.
-- reads: summaries
select status, count(*) as prompts, min(prompt_id) as example, arg_min(prompt, prompt_id) as prompt
from prompts
where status <> 'ok'
group by status
order by prompts desc, status
