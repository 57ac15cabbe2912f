-- The images whose answers lose most between two budgets.
-- reads: summaries
-- needs: answers at two budgets
-- $more budget = most: the one to lose from
-- $fewer budget = fewest: the one that is held against it
-- $limit count = 20: images shown
with lost as (
    select
        image_id, count(*) filter (where budget = $fewer) as prompts,
        avg(score) filter (where budget = $more) as at_more, avg(score) filter (where budget = $fewer) as at_fewer
    from answers
    where budget in ($more, $fewer) and score is not null
    group by image_id
    having at_more is not null and at_fewer is not null
    order by at_more - at_fewer desc, image_id
    limit $limit
)
select
    source, prompts, round(100 * at_more, 1) as accuracy_at_more, round(100 * at_fewer, 1) as accuracy_at_fewer,
    round(100 * (at_more - at_fewer), 1) as loss, image_id
from lost join images using (image_id)
order by at_more - at_fewer desc, image_id
