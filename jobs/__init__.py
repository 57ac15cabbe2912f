"""Entry points users start or submit. They parse settings and call the pipeline; nothing else reads the environment."""
