"""Which search algorithms there are, and what each reads of a configuration. `build` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OPTUNA = "optuna:"  # what the names of Optuna's samplers begin with


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One value of ``search.algorithm``.

    Args:
        spaces: kinds of space that it searches; empty for one-shot merges, which have none.
        scalar: whether it works on one number (the mean of the objectives scored on tasks, or ``search.weights``);
            None: on whatever ``search.weights`` says, else on all objectives.
        reads: further keys of ``search`` that it reads.
        anneals: whether it follows ``annealing`` beyond its first population.
        races: whether it can do with candidates that were given up in a race.
        seeded: whether its seed changes anything.
        schedule: ``annealing.schedule`` unless the configuration says otherwise; for methods of others as published,
            for our own what measured best, like the following.
        high: ``annealing.high`` likewise.
        rescales: ``pruning.rescale`` likewise.
    """

    spaces: tuple[Literal["lineage", "coefficients"], ...]
    scalar: bool | None = False
    reads: tuple[str, ...] = ()
    anneals: bool = False
    races: bool = False
    seeded: bool = True
    schedule: str = "cosine"
    high: float = 0.6
    rescales: bool = False

    def searched(self, kind: object = None) -> Literal["lineage", "coefficients"] | None:
        """Return the space that is searched: the kind asked for if it searches that, else its first; None without."""
        return next((space for space in self.spaces if space == kind), next(iter(self.spaces), None))

    def annealed(self, kind: object = None) -> bool:
        """Say whether it follows ``annealing`` in the space asked for: it is children of a lineage that are pruned."""
        return self.anneals and self.searched(kind) == "lineage"


_NSGA = Algorithm(
    ("lineage", "coefficients"),
    reads=("pace", "operators"),
    anneals=True,
    races=True,
    schedule="constant",
    high=0.8,
    rescales=True,
)
_SAE = Algorithm(("lineage",), reads=("sae",), anneals=True, races=True)
_SCALAR = Algorithm(("coefficients",), scalar=True)
_OPTUNA = Algorithm(("coefficients",), scalar=None)
_ONE_SHOT = Algorithm((), scalar=True, reads=("one_shot",), seeded=False)

ALGORITHMS: Mapping[str, Algorithm] = {
    "nsga2": _NSGA,
    "nsga3": _NSGA,
    "sae-global": _SAE,
    "sae-local": _SAE,
    "m2n2": Algorithm(("lineage",), reads=("sae",), races=True),
    "pso": Algorithm(("coefficients",), scalar=True, reads=("pso",)),
    "cmaes": _SCALAR,
    "random": Algorithm(("coefficients",), races=True),
    f"{OPTUNA}TPESampler": _OPTUNA,
    f"{OPTUNA}GPSampler": _OPTUNA,
    f"{OPTUNA}NSGAIISampler": _OPTUNA,
    f"{OPTUNA}NSGAIIISampler": _OPTUNA,
    f"{OPTUNA}RandomSampler": _OPTUNA,
    f"{OPTUNA}QMCSampler": _OPTUNA,
    f"{OPTUNA}CmaEsSampler": Algorithm(("coefficients",), scalar=True),
    "weighted-average": _ONE_SHOT,
    "task-arithmetic": _ONE_SHOT,
    "rankmean": _ONE_SHOT,
    "ties": _ONE_SHOT,
    "dare_ties": Algorithm((), scalar=True, reads=("one_shot",)),
    "slerp": _ONE_SHOT,
    "single-experts": _ONE_SHOT,
}
"""Name -> what it is."""

SETTINGS = ("pace", "operators", "sae", "pso", "one_shot")
"""Keys of ``search`` that only some algorithms read."""
