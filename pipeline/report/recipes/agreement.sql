-- How far two runs of answers agree, by type of prompt: word for word, and in what is right.
-- reads: summaries
-- needs: answers at two budgets
-- $more budget = most: the one to lose from
-- $fewer budget = fewest: the one that is held against it
select
    coalesce(a.type, '-') as type, count(*) as prompts,
    round(100 * count(*) filter (where a.answer = b.answer) / count(*), 2) as same_percent,
    count(*) filter (where a.correct and b.correct) as both_right,
    count(*) filter (where a.correct and not b.correct) as right_at_more_alone,
    count(*) filter (where not a.correct and b.correct) as right_at_fewer_alone,
    count(*) filter (where not a.correct and not b.correct) as neither_right
from (select * from answers where budget = $more and answer is not null) as a -- null: the prompt was refused
join (select * from answers where budget = $fewer and answer is not null) as b
    -- By the hash of the id, which takes less memory; that two of one shard have the same one does not happen.
    on a.shard is not distinct from b.shard and hash(a.prompt_id) = hash(b.prompt_id)
group by a.type
order by prompts desc, type
