"""Names of the selectors, in one place."""

SELECTORS = ("zoo", "zoo_centered", "divprune", "sensitivity", "feature_norm", "random", "uniform_grid")
USES_SENSITIVITY = ("zoo", "zoo_centered", "sensitivity")
USES_SEEDS = ("random",)
