"""Reading a pruned artifact back: prompts, and images at a budget."""
