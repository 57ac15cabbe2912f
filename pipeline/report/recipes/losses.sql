-- The images whose answers lose most between two budgets.
-- reads: summaries
-- needs: answers at two budgets
-- $more budget = most: the one to lose from
-- $fewer budget = fewest: the one that is held against it
-- $limit count = 20: images shown
with per_image as (
    select
        image_id, count(*) filter (where budget = $fewer) as prompts, count(*) filter (where budget = $more) as others,
        avg(score) filter (where budget = $more) as at_more, avg(score) filter (where budget = $fewer) as at_fewer
    from answers
    where budget in ($more, $fewer) and score is not null
    group by image_id
),
-- Where one budget refused a prompt, those are compared that both answered. Such images are few: most need no join.
uneven as (select image_id from per_image where prompts <> others),
paired as (
    select a.image_id, count(*) as prompts, avg(a.score) as at_more, avg(b.score) as at_fewer
    from (select * from answers where budget = $more and image_id in (from uneven)) as a
    join (select * from answers where budget = $fewer and image_id in (from uneven)) as b using (prompt_id)
    where a.score is not null and b.score is not null
    group by a.image_id
),
lost as (
    select image_id, prompts, at_more, at_fewer from per_image where prompts = others
    union all
    from paired
    order by at_more - at_fewer desc, image_id
    limit $limit
)
select
    source, prompts, round(100 * at_more, 1) as accuracy_at_more, round(100 * at_fewer, 1) as accuracy_at_fewer,
    round(100 * (at_more - at_fewer), 1) as loss, image_id
from lost join images using (image_id)
order by at_more - at_fewer desc, image_id
