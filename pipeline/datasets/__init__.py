"""Pruned artifacts as trainers and pipelines take them: a PyTorch dataset, a Ray Dataset, rows for `ray.data.llm`."""
