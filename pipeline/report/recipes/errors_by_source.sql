-- Failed inputs by the file or folder that they came from.
-- reads: summaries
-- $limit count = 20: files or folders shown
select
    parse_dirpath(source, 'forward_slash') as came_from, count(*) as inputs,
    string_agg(distinct reason, ', ' order by reason) as reasons
from errors
group by came_from
order by inputs desc, came_from
limit $limit
