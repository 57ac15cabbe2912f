-- The most common wrong answers, beside what would have been right.
-- reads: summaries
-- needs: answers
-- $budget budget = fewest: of the answers
-- $limit count = 20: pairs shown
select
    coalesce(type, '-') as type, "references"[1] as reference, answer, count(*) as prompts,
    round(100 * count(*) / sum(count(*)) over (), 2) as percent_of_mistakes
from answers
where budget = $budget and not correct
group by 1, 2, 3
order by prompts desc, type, reference, answer
limit $limit
