"""Making and mending the index: which sample rides in which shard."""
