-- Prompts that are answered rightly at one budget and wrongly at a smaller one, with both answers.
-- reads: summaries
-- needs: answers at two budgets
-- $more budget = most: the one to lose from
-- $fewer budget = fewest: the one that is held against it
-- $limit count = 20: prompts shown
with flipped as (
    select prompt_id, a.type, a.answer as at_more, b.answer as at_fewer, a.image_id
    from (select * from answers where budget = $more and correct) as a
    join (select * from answers where budget = $fewer and not correct) as b using (prompt_id)
    order by prompt_id
    limit $limit
)
select prompt_id, coalesce(flipped.type, '-') as type, prompt, at_more, at_fewer, flipped.image_id
from flipped join prompts using (prompt_id)
order by prompt_id
