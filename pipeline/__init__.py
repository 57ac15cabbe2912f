"""The stages, in the order data flows: corpus, index, read, decode, encode, select, write; then generate and query."""
