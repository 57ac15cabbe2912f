-- What there is: images, tokens, prompts, failed inputs, shards, bytes.
-- reads: summaries
select
    (select count(*) from images) as images,
    (select sum(num_tokens) from images)::bigint as tokens,
    (select sum(num_kept) from images)::bigint as kept,
    (select count(*) from prompts) as prompts,
    (select count(*) from prompts where status = 'ok') as ok,
    (select count(*) from errors) as errors,
    (select count(*) from shards) as shards,
    (select sum(size_bytes) from shards)::bigint as size_bytes
