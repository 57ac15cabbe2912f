"""The answer job: stored features and prompts to answers."""
