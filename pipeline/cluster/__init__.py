"""All of Ray: sessions, streams of shards through stages, tries, stopping, progress. Nothing else imports ray."""
