"""Choosing a budget: what pruning costs on a sample of a corpus, and which budget is safe for it."""
