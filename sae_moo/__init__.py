"""Search merges of fine-tuned language models for the Pareto front of accuracy against sparsity.

Names are imported when they are first used, so that ``import sae_moo`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sae_moo.config.document import Config
    from sae_moo.errors import InputError, Interrupted, RunError, SaeMooError, StorageError
    from sae_moo.evaluate.task import Task
    from sae_moo.experts.pool import ExpertPool
    from sae_moo.explore.run import Run
    from sae_moo.jobs.bench import Bench
    from sae_moo.jobs.export import export
    from sae_moo.jobs.merge import merge
    from sae_moo.jobs.predict import Forecast, predict
    from sae_moo.jobs.search import search
    from sae_moo.materialization.calibration import calibrate, load_calibration
    from sae_moo.materialization.into_model import Report, materialize
    from sae_moo.materialization.parents import WeightCache
    from sae_moo.materialization.texts import calibration_texts
    from sae_moo.objectives import Constraint, Evaluation, Objective, Sparsity, Speed, TaskMean
    from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe, Repair
    from sae_moo.searchers.annealing import CyclicAnnealing
    from sae_moo.searchers.ground import Ground
    from sae_moo.searchers.nsga import NsgaSearcher
    from sae_moo.searchers.operators import LineageSampling, PruneMergeMutation, RecipeDuplicates, ZeroAwareCrossover
    from sae_moo.searchers.problem import MergeProblem
    from sae_moo.searchers.schedule import Schedule
    from sae_moo.searchers.searcher import Proposal, Searcher
    from sae_moo.searchers.selection import AttractionMating
    from sae_moo.searchers.space import CoefficientSpace, LineageSpace
    from sae_moo.study.record import Ended, Running

_HOMES = {
    "jobs.bench": ("Bench",),
    "materialization.calibration": ("calibrate", "load_calibration"),
    "config.document": ("Config",),
    "errors": ("InputError", "Interrupted", "RunError", "SaeMooError", "StorageError"),
    "experts.pool": ("ExpertPool",),
    "jobs.export": ("export",),
    "jobs.merge": ("merge",),
    "jobs.predict": ("Forecast", "predict"),
    "jobs.search": ("search",),
    "evaluate.task": ("Task",),
    "materialization.into_model": ("Report", "materialize"),
    "materialization.parents": ("WeightCache",),
    "materialization.texts": ("calibration_texts",),
    "objectives": ("Constraint", "Evaluation", "Objective", "Sparsity", "Speed", "TaskMean"),
    "recipe": ("Cast", "Expert", "Merge", "Prune", "Recipe", "Repair"),
    "explore.run": ("Run",),
    "searchers.schedule": ("Schedule",),
    "searchers.searcher": ("Proposal", "Searcher"),
    "searchers.annealing": ("CyclicAnnealing",),
    "searchers.nsga": ("NsgaSearcher",),
    "searchers.operators": ("LineageSampling", "PruneMergeMutation", "RecipeDuplicates", "ZeroAwareCrossover"),
    "searchers.selection": ("AttractionMating",),
    "searchers.problem": ("MergeProblem",),
    "searchers.ground": ("Ground",),
    "searchers.space": ("CoefficientSpace", "LineageSpace"),
    "study.record": ("Ended", "Running"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AttractionMating",
    "Bench",
    "Cast",
    "CoefficientSpace",
    "Config",
    "Constraint",
    "CyclicAnnealing",
    "Ended",
    "Evaluation",
    "Expert",
    "ExpertPool",
    "Forecast",
    "Ground",
    "InputError",
    "Interrupted",
    "LineageSampling",
    "LineageSpace",
    "Merge",
    "MergeProblem",
    "NsgaSearcher",
    "Objective",
    "Proposal",
    "Prune",
    "PruneMergeMutation",
    "Recipe",
    "RecipeDuplicates",
    "Repair",
    "Report",
    "Run",
    "RunError",
    "Running",
    "SaeMooError",
    "Schedule",
    "Searcher",
    "Sparsity",
    "Speed",
    "StorageError",
    "Task",
    "TaskMean",
    "WeightCache",
    "ZeroAwareCrossover",
    "calibrate",
    "calibration_texts",
    "export",
    "load_calibration",
    "materialize",
    "merge",
    "predict",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sae_moo' has no attribute {name!r}")
    value = getattr(import_module(f"sae_moo.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
