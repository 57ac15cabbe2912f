-- Prompts by type: how many can be posed, and how many have references.
-- reads: summaries
select
    coalesce(type, '-') as type, count(*) as prompts, count(*) filter (where status = 'ok') as ok,
    count(*) filter (where len("references") > 0) as with_references
from prompts
group by type
order by prompts desc, type
