"""Names of the selectors, in one place."""

SELECTORS = (
    "zoo",
    "zoo_centered",
    "divprune",
    "divprune_centered",
    "coverage",
    "zoo_coverage",
    "cls_attention",
    "sensitivity",
    "feature_norm",
    "random",
    "uniform_grid",
)
USES_SENSITIVITY = ("zoo", "zoo_centered", "zoo_coverage", "sensitivity")
USES_ATTENTION = ("cls_attention",)
USES_SEEDS = ("random",)
POSITIONAL = ("random", "uniform_grid")  # without a score: their gains are the same for every image
CENTERED = ("zoo_centered", "divprune_centered")
