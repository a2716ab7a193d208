"""A predictor of what merges of two, and chains of them, will score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from sae_moo.errors import InputError, nearest
from sae_moo.prediction.design import Scale
from sae_moo.prediction.folds import FEWEST_PAIRS
from sae_moo.prediction.learned import Choice, Learned
from sae_moo.prediction.observations import Observation, Own
from sae_moo.prediction.rows import Asked, Rows, Side, rows_of, side_of
from sae_moo.prediction.table import FeatureTable
from sae_moo.prediction.training import Training
from sae_moo.recipe.operators import Operator

Chain: TypeAlias = tuple[Sequence[str], Sequence[str], str]
"""Operators, experts (one more) and a task."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a merge is expected to score.

    Args:
        score: expected score, in [0, 1].
        low, high: ends of the interval around it, in [0, 1]; [0, 1] where too little was observed to tell. It is to
            hold what would be observed on the same instances; scores on others differ by their own sampling, too.
        reasons: what speaks for the merge (positive) and against it (negative), as (name, how much of the score), the
            largest first, those that count nothing left out; see `models.Fitted.reasons`. Empty where many were asked
            at once.
        model: name of the regression that predicted, see `models.MODELS`; of a chain, that of its last merge.
        labelled: whether it uses what the experts score by themselves, which takes labels.
        unseen: which of the experts were in none of the merges by its (last) operator that were learned from.
        missing: features that the regression reads and that are not known of these experts; taken as average.
    """

    score: float
    low: float
    high: float
    reasons: tuple[tuple[str, float], ...] = ()
    model: str = ""
    labelled: bool = False
    unseen: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Predictor:
    """What was learned of features and of observed merges of two; made by `learn`.

    Args:
        table: features of the experts that are asked about.
        own: what they score by themselves, as far as that is known.
        known: expert that is asked about -> the name of the same one among those that were learned from.
        training: what it was learned from.

    Attributes:
        operators: those that can be predicted, in the order given.
        short: operator -> on how many pairs it was observed, of those that were observed on too few.
    """

    def __init__(self, table: FeatureTable, own: Own, known: Mapping[str, str], training: Training) -> None:
        self.table, self.own, self.known, self.training = table, dict(own), dict(known), training
        self.operators, self.short, self.confidence = training.operators, training.short, training.confidence
        self._columns = {name: training.experts.index(same) for name, same in known.items()}

    @classmethod
    def learn(
        cls,
        table: FeatureTable,
        observations: Iterable[Observation],
        operators: Sequence[Operator],
        *,
        models: Sequence[str] | None = None,
        confidence: float = 0.9,
        fingerprints: Mapping[str, str] = MappingProxyType({}),
        probes: Mapping[str, str] = MappingProxyType({}),
        tasks: Mapping[str, str] = MappingProxyType({}),
    ) -> Predictor:
        """Learn from what merges of two scored; longer chains among the observations are left out.

        For each operator, the regression is chosen by what it predicts of held-out merges, once for merges of experts
        that are known, once for those of which one, and once for those of which both are not (`folds.folds_of`); each
        with and without what the experts score by themselves. That is done when it is first asked for.

        Args:
            table: features of all pairs that were observed; of symmetric operators, in both orders.
            observations: what merges scored, and experts by themselves; all of one split. Regressions on own scores are
                tried where those of all observed experts are among them.
            operators: what the observations' operators are; those that were not observed are left out.
            models: names of the regressions to choose among (`models.MODELS`); None: the usual ones. The main effects
                are always among them.
            confidence: share of merges that intervals are to hold, in (0, 1).
            fingerprints: expert, or their base -> what its weights are known by: kept with what is learned, so that who
                is asked about can be told from namesakes (`on`, `known`).
            probes: what tells the texts that the features are of from others: kept with what is learned, since features
                of other texts are on another scale.
            tasks: what tells the tasks from others of the same names: kept as well.

        Raises:
            InputError: if no operator was observed on `FEWEST_PAIRS` pairs of experts, saying on how many each was; if
                an observed pair has no features; if a regression is unknown; or if scikit-learn is not installed.
        """
        training = Training.of(table, observations, operators, models, confidence, fingerprints, probes, tasks)
        return cls(table, training.own, {name: name for name in training.experts}, training)

    def on(
        self,
        table: FeatureTable,
        own: Own | None = None,
        known: Mapping[str, str] | None = None,
        aligned: bool = False,
    ) -> Predictor:
        """Return the same predictor asked about the experts of another table, e.g. of another architecture.

        Args:
            table: their features.
            own: their scores by themselves, as far as they are known.
            known: expert -> the name of the same one among those that were learned from; None: they are all others,
                whatever their names.
            aligned: whether each feature is moved and stretched, for each task, to the mean and deviation that it has
                in what was learned from: right where architectures differ in its level, wrong where the experts do. Of
                ten experts of another architecture, it halved the error of predictions without labels.

        Raises:
            InputError: if the table has none of the features that were learned from, or an expert of `known` is none.
        """
        names = self.training.table.names
        if not set(names) & set(table.names):
            raise InputError(
                f"features: expected some of {', '.join(names[:3])}, ..., got {', '.join(table.names[:3])}"
            )
        strangers = [name for name in (known or {}).values() if name not in self.training.experts]
        if strangers:
            near = nearest(strangers[0], self.training.experts)
            raise InputError(f"known: nothing was learned of an expert {strangers[0]!r}{near}")
        return Predictor(
            _aligned(table, self.training.table) if aligned else table, own or {}, known or {}, self.training
        )

    def predict(self, operator: str, first: str, second: str, task: str) -> Prediction:
        """Predict a merge of two, in this order.

        Raises:
            InputError: if the operator was not observed often enough, or there are no features of the pair.
        """
        return self.chain((operator,), (first, second), task)

    def chain(self, operators: Sequence[str], experts: Sequence[str], task: str) -> Prediction:
        """Predict a chain of two-way merges, ``((a op b) op c)``, by composition; see `chains`.

        Raises:
            InputError: as `predict`.
        """
        return self._predictions([(operators, experts, task)], reasons=True)[0]

    def chains(self, asked: Sequence[Chain]) -> list[Prediction]:
        """Predict many chains, without reasons.

        Merges of two are predicted from their features. Those of an earlier merge with a third expert are not known
        without making it. They are taken as those of its experts with the third, mixed by the weights of the operators
        that merged them, and its predicted score as what it scores by itself (our reading of SimMerge's sequences of
        two-way merges, Bolton et al. 2026; the authors may compute the features of what they have merged). The interval
        of a chain is that of its last merge, asked with the ends of the interval of what was merged before: wider, but
        not calibrated on chains. A regression that does not read own scores knows no more of earlier operators than
        their weights.

        Args:
            asked: operators, experts (one more, each once) and task of each.

        Returns:
            A prediction for each, in their order; the same as if it were asked alone.

        Raises:
            InputError: as `predict`.
        """
        return self._predictions(asked, reasons=False)

    def chosen(self, operator: str, unseen: int = 0, labelled: bool = True) -> Choice:
        """Return which regression predicts merges by an operator, and how each did on what was held out.

        Args:
            operator: its name.
            unseen: how many experts of the merge nothing was learned of: 0, 1 or 2.
            labelled: whether what the experts score by themselves is known.
        """
        return self._of(operator).choice(unseen, labelled)

    def _of(self, operator: str) -> Learned:
        if operator in self.training.learned:
            return self.training.learned[operator]
        if operator in self.short:
            raise InputError(
                f"operator {operator!r}: expected merges of at least {FEWEST_PAIRS} pairs of experts to learn from, "
                f"got {self.short[operator]}"
            )
        names = [each.name for each in self.operators]
        raise InputError(f"operator {operator!r}: there are no merges by it to learn from{nearest(operator, names)}")

    def _predictions(self, asked: Sequence[Chain], reasons: bool) -> list[Prediction]:
        chains = [(tuple(operators), tuple(experts), task) for operators, experts, task in asked]
        for operators, experts, _ in chains:
            if len(experts) < 2 or len(operators) != len(experts) - 1 or len(set(experts)) != len(experts):
                raise InputError(
                    f"expected two experts or more, each once, and one operator less, got {', '.join(experts)} and "
                    f"{', '.join(operators) or 'none'}"
                )
        before: list[Chain] = list(
            dict.fromkeys((ops[:-1], names[:-1], task) for ops, names, task in chains if len(names) > 2)
        )
        scores = dict(zip(before, self._predictions(before, reasons=False), strict=True)) if before else {}
        predictions: list[Prediction | None] = [None] * len(chains)
        for operator in dict.fromkeys(operators[-1] for operators, _, _ in chains):
            places = [place for place, chain in enumerate(chains) if chain[0][-1] == operator]
            steps = [self._step(chains[place], scores) for place in places]
            for place, prediction in zip(places, self._last(operator, steps, reasons), strict=True):
                predictions[place] = prediction
        return [each for each in predictions if each is not None]

    def _step(self, chain: tuple[tuple[str, ...], tuple[str, ...], str], scores: Mapping[Chain, Prediction]) -> _Step:
        """Return the last merge of a chain: what is asked, and with which ends of what was merged before."""
        operators, experts, task = chain
        second = side_of(experts[-1], self.own, (task,))
        if len(experts) == 2:
            asked = Asked(side_of(experts[0], self.own, (task,)), second, task)
            return _Step((asked, asked, asked), experts)
        shares = self._shares(operators[:-1], experts[:-1])
        before = scores[operators[:-1], experts[:-1], task]
        score, low, high = (
            Asked(Side(shares, {task: own}), second, task) for own in (before.score, before.low, before.high)
        )
        return _Step((score, low, high), experts)

    def _shares(self, operators: Sequence[str], experts: Sequence[str]) -> tuple[tuple[str, float], ...]:
        """Return how much of each expert is in a chain of merges."""
        weights = {each.name: each.weights for each in self.operators}
        shares = {experts[0]: 1.0}
        for operator, expert in zip(operators, experts[1:], strict=True):
            first, second = (abs(weight) for weight in weights[operator])
            share = first / (first + second) if first + second else 0.5
            shares = {name: part * share for name, part in shares.items()} | {expert: 1.0 - share}
        return tuple(shares.items())

    def _last(self, operator: str, steps: Sequence[_Step], reasons: bool) -> list[Prediction]:
        """Return the predictions of last merges by one operator."""
        learned = self._of(operator)
        whole, *ends = (self._rows(operator, [step.ends[end] for step in steps]) for end in range(3))
        unseen = [[name for name in step.experts if self.known.get(name) not in learned.seen] for step in steps]
        known = [not bool(row.any()) for row in np.isnan(whole.own)]
        regimes = [(min(len(new), 2), labelled) for new, labelled in zip(unseen, known, strict=True)]
        predictions: dict[int, Prediction] = {}
        for regime in dict.fromkeys(regimes):
            places = [place for place, other in enumerate(regimes) if other == regime]
            choice = learned.choice(*regime)
            rows = whole.at(places)
            scores = choice.fitted.predict(rows)
            low, high = choice.interval(rows, self.confidence)
            if any(len(steps[place].experts) > 2 for place in places):
                low = np.minimum(low, choice.interval(ends[0].at(places), self.confidence)[0])
                high = np.maximum(high, choice.interval(ends[1].at(places), self.confidence)[1])
            low, high = np.clip(np.minimum(low, scores), 0.0, 1.0), np.clip(np.maximum(high, scores), 0.0, 1.0)
            told = choice.fitted.reasons(rows) if reasons else [{}] * len(places)
            missing = choice.fitted.design.missing(rows, learned.features)
            for i, place in enumerate(places):
                predictions[place] = Prediction(
                    float(scores[i]),
                    float(low[i]),
                    float(high[i]),
                    by_size(told[i]),
                    choice.setting.model.name,
                    choice.setting.model.labelled,
                    tuple(unseen[place]),
                    missing[i],
                )
        return [predictions[place] for place in range(len(steps))]

    def _rows(self, operator: str, asked: Sequence[Asked]) -> Rows:
        names, symmetric = self.training.table.names, self.training.symmetric(operator)
        return rows_of(asked, self.table, names, self._columns, len(self.training.experts), symmetric)


@dataclass(frozen=True, slots=True)
class _Step:
    """The last merge of a chain.

    Args:
        ends: what is asked: with the predicted score of what was merged before, and with the ends of its interval.
        experts: of the whole chain.
    """

    ends: tuple[Asked, Asked, Asked]
    experts: tuple[str, ...]


def _aligned(table: FeatureTable, to: FeatureTable) -> FeatureTable:
    """Return a table whose features have, for each task that both know, the means and deviations of another one."""
    names = [name for name in table.names if name in to.names]
    part = table.only(names)
    keys, target = list(part.rows), to.only(names)
    tasks, others = [key[2] for key in keys], [key[2] for key in target.rows]
    numbers, model = part.matrix(keys), np.stack(list(target.rows.values()))
    here, there = Scale.of(tasks, numbers), Scale.of(others, model)
    stretch = np.divide(there.units, here.units, out=np.ones(len(names)), where=here.units > 0)
    moved = (numbers - here.means.at(tasks)) * stretch + there.means.at(tasks)
    return FeatureTable(part.names, dict(zip(keys, moved, strict=True)))


def by_size(reasons: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return reasons, the largest first, either way; those that count nothing left out."""
    counting = [(name, size) for name, size in reasons.items() if size != 0.0]
    return tuple(sorted(counting, key=lambda reason: (-abs(reason[1]), reason[0])))
