"""What a predictor is learned from: features, merges that were observed, and the regressions to choose among."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from sae_moo.errors import InputError, itemized, nearest
from sae_moo.prediction.estimators import release
from sae_moo.prediction.folds import FEWEST_PAIRS
from sae_moo.prediction.learned import Learned
from sae_moo.prediction.models import BASELINE, MODELS, Model
from sae_moo.prediction.observations import Observation, Own, own_scores
from sae_moo.prediction.rows import Asked, feature_names, rows_of, side_of
from sae_moo.prediction.table import FeatureTable, Key
from sae_moo.recipe.operators import Operator


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What a predictor was learned from; a value.

    Args:
        table: features of the observed experts.
        observations: merges of two and experts by themselves, in a fixed order.
        operators: those that were observed often enough, in the order given.
        models: the regressions to choose among.
        confidence: share of merges that intervals are to hold.
        own: what the experts score by themselves.
        experts: those in observed merges, sorted.
        learned: operator -> what was learned of it.
        short: operator -> on how many pairs it was observed, of those that were observed on too few.
        fingerprints: expert, or their base -> what its weights are known by, as far as that was told.
        probes: what tells the texts that the features are of from others, as far as that was told.
        tasks: what tells the tasks from others of the same names, as far as that was told.
    """

    table: FeatureTable
    observations: tuple[Observation, ...]
    operators: tuple[Operator, ...]
    models: tuple[Model, ...]
    confidence: float
    own: Own
    experts: tuple[str, ...]
    learned: dict[str, Learned] = field(repr=False)
    short: dict[str, int]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        table: FeatureTable,
        observations: Iterable[Observation],
        operators: Sequence[Operator],
        models: Sequence[str] | None = None,
        confidence: float = 0.9,
        fingerprints: Mapping[str, str] = MappingProxyType({}),
        probes: Mapping[str, str] = MappingProxyType({}),
        tasks: Mapping[str, str] = MappingProxyType({}),
    ) -> Training:
        """Put together what is learned from; see `predictor.Predictor.learn`.

        Raises:
            InputError: as that says.
        """
        release()  # refused here where scikit-learn is absent, not in the middle of a ranking
        unknown = [name for name in models or () if name not in MODELS]
        if unknown:
            raise InputError(f"models: there is no regression {unknown[0]!r}{nearest(unknown[0], MODELS)}")
        if not 0.0 < confidence < 1.0:
            raise InputError(f"confidence: expected a number in (0, 1), got {confidence}")
        wanted = [model.name for model in MODELS.values() if model.usual] if models is None else models
        chosen = [model for model in MODELS.values() if model.name in wanted or model is BASELINE]
        by_name = {operator.name: operator for operator in operators}
        kept = [each for each in observations if not each.operators or each.operator in by_name]
        kept.sort(key=lambda each: (each.operators, each.experts, each.task, each.score, each.instances))
        merges = [each for each in kept if each.operators]
        counts = {name: len({frozenset(e.experts) for e in merges if e.operator == name}) for name in by_name}
        enough = [operator for operator in operators if counts[operator.name] >= FEWEST_PAIRS]
        short = {name: count for name, count in counts.items() if count < FEWEST_PAIRS}
        if not enough:
            raise InputError(
                itemized(
                    f"to predict what an operator's merges score, merges by it of at least {FEWEST_PAIRS} pairs of "
                    "experts must have been evaluated; evaluated were",
                    [f"{name}: {count} pair{'' if count == 1 else 's'}" for name, count in short.items()]
                    or ["none by an operator asked for"],
                )
            )
        own = own_scores(kept)
        experts = tuple(sorted({name for each in merges for name in each.experts}))
        part = table.only(experts=experts)
        columns = {name: column for column, name in enumerate(experts)}
        learned = {}
        for operator in enough:
            scores = pair_scores([each for each in merges if each.operator == operator.name], operator.symmetric)
            asked = [
                Asked(side_of(first, own, (task,)), side_of(second, own, (task,)), task)
                for first, second, task in scores
            ]
            learned[operator.name] = Learned(
                rows_of(asked, part, part.names, columns, len(experts), operator.symmetric),
                np.array(list(scores.values())),
                [(first, second) for first, second, _ in scores],
                feature_names(part.names, operator.symmetric),
                experts,
                chosen,
            )
        return cls(
            part,
            tuple(kept),
            tuple(enough),
            tuple(chosen),
            confidence,
            own,
            experts,
            learned,
            short,
            dict(fingerprints),
            dict(probes),
            dict(tasks),
        )

    def symmetric(self, operator: str) -> bool:
        """Say whether an operator makes the same model of both orders."""
        return any(each.name == operator and each.symmetric for each in self.operators)


def pair_scores(merges: Sequence[Observation], symmetric: bool) -> dict[Key, float]:
    """Return one score for each pair and task: of several observations, the mean over all instances.

    Both orders of a symmetric operator are one merge, under the sorted names.
    """
    sums: dict[Key, tuple[float, int]] = {}
    for each in merges:
        first, second = sorted(each.experts) if symmetric else each.experts
        total, instances = sums.get((first, second, each.task), (0.0, 0))
        sums[first, second, each.task] = (total + each.score * each.instances, instances + each.instances)
    return {key: total / instances for key, (total, instances) in sorted(sums.items())}
