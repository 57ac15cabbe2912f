-- Time to answer by budget, and the visual tokens that were seen for it.
-- reads: summaries
-- needs: answers
select
    budget, count(*) as prompts, round(avg(tokens), 1) as tokens, round(sum(seconds), 1) as seconds,
    round(1000 * avg(seconds), 2) as ms_a_prompt
from answers
where finish_reason <> 'refused'
group by budget
order by tokens desc, budget
