"""Prompt-independent visual token selection: tensors in, tensors out.

Axes, as tensor names carry them:
    B  images of a batch            N  visual tokens of an image (padded to the longest)
    D  width the projector reads    P  patches merged into one token    d  width of a patch, D = P d
    H  hidden width of the projector    O  width of the language model's embeddings
    K  ranked or kept tokens        M  directions        C  coordinates of a position (row, column)
    R  rows worked on side by side    T  tokens of the vision tower, its class token first

A token's vision feature x is what the projector reads, its projected feature z = M(x) what the language model reads.
"""

from zoo_ops.agreement import Agreement, estimator_agreement, spearman
from zoo_ops.attention import class_attention
from zoo_ops.budgets import MeanBudget, budget_by_count, budget_by_gain, budget_by_mean, budget_by_ratio, ranked_tokens
from zoo_ops.gather import KeptTokens, gather_tokens
from zoo_ops.projector import NormSpec, ProjectorSpec, as_projector_spec, preferred_estimator
from zoo_ops.ranking import Ranking, rank_tokens
from zoo_ops.sampled import draw_directions
from zoo_ops.selectors import CENTERED, POSITIONAL, SELECTORS, USES_ATTENTION, USES_SEEDS, USES_SENSITIVITY
from zoo_ops.sensitivity import (
    ESTIMATORS,
    PreparedEstimator,
    estimate_sensitivity,
    prepare_estimator,
    require_informative,
)
from zoo_ops.transfer import host_buffer, upload
from zoo_ops.validate import Findings

__all__ = [
    "CENTERED",
    "ESTIMATORS",
    "POSITIONAL",
    "SELECTORS",
    "USES_ATTENTION",
    "USES_SEEDS",
    "USES_SENSITIVITY",
    "Agreement",
    "Findings",
    "KeptTokens",
    "MeanBudget",
    "NormSpec",
    "PreparedEstimator",
    "ProjectorSpec",
    "Ranking",
    "as_projector_spec",
    "budget_by_count",
    "budget_by_gain",
    "budget_by_mean",
    "budget_by_ratio",
    "class_attention",
    "draw_directions",
    "estimate_sensitivity",
    "estimator_agreement",
    "gather_tokens",
    "host_buffer",
    "preferred_estimator",
    "prepare_estimator",
    "rank_tokens",
    "ranked_tokens",
    "require_informative",
    "spearman",
    "upload",
]
