"""The prune job: read, decode, encode, score, select, write."""
