"""What came of a candidate: its evaluation, the objectives, the front; needs no torch."""

from sae_moo.objectives.evaluation import (
    FAILED_OBJECTIVE,
    SCORE_DIGITS,
    SPARSITY,
    Constraint,
    Evaluation,
    Objective,
    Stopped,
    feasible,
    flipped,
    loss,
    minimized,
    named_quantities,
    objective_scores,
    violation_count,
    violations,
)

__all__ = [
    "FAILED_OBJECTIVE",
    "SCORE_DIGITS",
    "SPARSITY",
    "Constraint",
    "Evaluation",
    "Objective",
    "Stopped",
    "feasible",
    "flipped",
    "loss",
    "minimized",
    "named_quantities",
    "objective_scores",
    "violation_count",
    "violations",
]
