"""What each figure of a study shows, as numbers: pages and pictures draw the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.explore.history import lineage
from sae_moo.explore.view import Marked, View, sparsity
from sae_moo.explore.words import count, objective_words
from sae_moo.objectives import Speed, TaskMean
from sae_moo.recipe import BASE
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.study.record import Ended, ended

Array = NDArray[np.float64]
MOST_DOTS = 2000  # dominated trials drawn in a figure; browsers slow down beyond some thousands
MOST_BARS = 200  # trials of the front that are drawn with error bars; more of them hide what they belong to
MOST_NUMBERS = 40  # rows or columns of a heatmap whose cells have their numbers written in
MOST_ANSWERS = 8_000_000  # of trials to choose from in a page: some 1.3 MB, a bit for each
NARROW = 0.12  # an axis that shows less than this would make nothing look like something
RIGHT = 0.5  # the least score of an instance that is got right


@dataclass(frozen=True, slots=True)
class Axis:
    """A quantity to draw.

    Args:
        name: short.
        title: in words, with the unit.
        value: trial -> value.
        error: trial -> standard error; NaN or 0 for none.
        share: value -> where it is between 0 and 1, for what draws several quantities on one scale.
        scaled: what that is called.
    """

    name: str
    title: str
    value: Callable[[Ended], float]
    error: Callable[[Ended], float]
    share: Callable[[float], float] = float
    scaled: str = ""

    def shares(self, record: Ended) -> float:
        """Return where a trial's value is between 0 and 1."""
        return self.share(self.value(record))

    def values(self, records: Sequence[Ended]) -> Array:
        """Return the values of trials, shape (trials,)."""
        return np.array([self.value(record) for record in records], dtype=np.float64)

    def errors(self, records: Sequence[Ended]) -> Array | None:
        """Return the standard errors of trials, shape (trials,), 0 where there is none; None if none has one."""
        spread = np.nan_to_num(np.array([self.error(record) for record in records], dtype=np.float64))
        return spread if spread.any() else None


def axes_of(view: View) -> list[Axis]:
    """Return an axis for every objective, in order."""
    return [
        Axis(
            objective.name,
            objective_words(objective),
            lambda record, name=objective.name: record.values[name],  # type: ignore[misc]
            lambda record, name=objective.name: record.stderr.get(name, np.nan),  # type: ignore[misc]
            objective.share,
            f"1 - 1/{objective.name}" if isinstance(objective, Speed) else objective.name,
        )
        for objective in view.objectives
    ]


def stacked(view: View) -> list[Marked]:
    """Return the references in the order to draw them: experts, their average over these, the base on top."""
    return sorted(view.references, key=lambda each: (each.name == BASE) + (each.record in (view.average, view.base)))


def widened(low: float, high: float) -> tuple[float, float]:
    """Return the ends of an axis of values from 0 to 1, or of speeds, `NARROW` apart at least."""
    if high - low >= NARROW:
        return low, high
    begin = max(-NARROW / 10, (low + high - NARROW) / 2)
    return begin, begin + NARROW


def planes(view: View) -> list[tuple[Axis, Axis]]:
    """Return what the front is drawn over, as pairs of what goes to the right and what goes up.

    One objective goes up over the trials' numbers; the last of two goes to the right; three make a plane for every
    pair; of more, the mean of those that are scored goes up over each of the others, over sparsity if there is none.
    """
    axes = axes_of(view)
    match len(axes):
        case 1:
            return [(Axis("trial", "trial number", lambda record: record.number, lambda record: 0.0), axes[0])]
        case 2:
            return [(axes[1], axes[0])]
        case 3:
            return [(axes[2], axes[0]), (axes[2], axes[1]), (axes[1], axes[0])]
        case _:
            title = "accuracy (mean of the scored objectives, 0 to 1)"
            zeros = "sparsity (fraction of zeros among prunable weights)"
            up = Axis("accuracy", title, view.accuracy, view.accuracy_error)
            others = [axis for axis, o in zip(axes, view.objectives, strict=True) if not isinstance(o, TaskMean)]
            return [(each, up) for each in others or [Axis("sparsity", zeros, sparsity, lambda record: 0.0)]]


def thinned(view: View) -> list[Ended]:
    """Return the trials with a result that are not on the front, at most `MOST_DOTS`, evenly spread over time."""
    front = {record.number for record in view.front}
    rest = [record for record in view.done if record.number not in front]
    if len(rest) <= MOST_DOTS:
        return rest
    return [rest[i] for i in np.linspace(0, len(rest) - 1, MOST_DOTS).astype(int)]


def thinned_words(view: View, drawn: Sequence[Ended]) -> str:
    """Return how many trials that are not on the front are drawn, and of how many."""
    rest = len(view.done) - len(view.front)
    said = count(rest, "other trial")
    return said if len(drawn) == rest else f"{len(drawn):,} of {said}"


def front_words(view: View) -> str:
    """Return how many trials are on the front, and what their bars are where there are any."""
    bars = " (bars: standard error)" if barred(view) else ""
    return f"front, {count(len(view.front), 'trial')}{bars}"


def barred(view: View) -> bool:
    """Return whether the front is drawn with error bars: it has some, and few enough to be told apart."""
    axes = axes_of(view)
    return len(view.front) <= MOST_BARS and any(axis.errors(view.front) is not None for axis in axes)


def levels(volumes: Array) -> tuple[NDArray[np.int64], Array]:
    """Return after how many evaluations each level of a growing curve begins, and the levels; the end is kept.

    Args:
        volumes: ascending, shape (evaluations,).
    """
    keep = np.flatnonzero(np.diff(volumes, prepend=-1.0))
    keep = np.union1d(keep, [len(volumes) - 1]).astype(np.int64) if len(volumes) else keep
    return keep + 1, volumes[keep]


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """What is in each parameter group of a trial.

    Args:
        groups: G names in the pool's order.
        experts: E names.
        weights: to first order, shape (G, E); a row sums to 1.
        zeros: realised sparsity, shape (G,), in [0, 1).
    """

    groups: Sequence[str]
    experts: Sequence[str]
    weights: Array
    zeros: Array

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the scale of weights: 0 and at least 1, or as far below 0 as above it where a weight is negative."""
        reach = float(np.abs(self.weights).max())
        return (-reach, reach) if self.weights.min() < -0.005 else (0.0, max(1.0, reach))


def blocks_of(view: View, record: Ended) -> Blocks:
    """Return what is in each parameter group of a trial with a result."""
    weights = mixing_weights(record.recipe, view.experts, len(view.groups), view.mixing)
    zeros = record.evaluation.group_sparsity or (0.0,) * len(view.groups)
    return Blocks(view.groups, view.experts, weights, np.array(zeros, dtype=np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Ancestry:
    """A trial and its nearest ancestors, each with a place: oldest first to the right, the first objective up.

    Args:
        axis: what goes up.
        trials: ascending by number; the trial itself is the last.
        edges: (parent, child) as places in `trials`.
        hidden: how many further ancestors there are.
        names: number -> name of those that have one: the base, the experts, their average.
    """

    axis: Axis
    trials: Sequence[Ended]
    edges: Sequence[tuple[int, int]]
    hidden: int
    names: dict[int, str]

    @property
    def caption(self) -> str:
        """What the lines and colours are, and how many ancestors are left out."""
        left = f" {self.unseen}." if self.unseen else ""
        return f"Where it comes from: lines lead from parents to children, the colour is sparsity.{left}"

    @property
    def unseen(self) -> str:
        """How many ancestors are left out, a clause; nothing if none are."""
        return f"{count(self.hidden, 'older ancestor')} not shown" if self.hidden else ""


def ancestry_of(view: View, record: Ended) -> Ancestry | None:
    """Return where a trial with a result comes from; None if no trial with a result is a parent of it."""
    found = lineage(view.records, record.number)
    shown = [each for each in ended(view.records[n] for n in found.numbers) if each.values]
    place = {each.number: i for i, each in enumerate(shown)}
    edges = [(place[a], place[b]) for a, b in found.edges if a in place and b in place]
    if not edges:
        return None
    names = {each.record.number: each.name for each in view.references if each.record.number in place}
    return Ancestry(axes_of(view)[0], shown, edges, found.hidden, names)


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Which instances of the search split two trials get right, by task.

    Args:
        first, second: what the trials are called.
        tasks: names of the tasks on whose instances both were scored, at least one.
        parts: for each task the instances that both, only the first, only the second and neither gets right, ascending.
    """

    first: str
    second: str
    tasks: Sequence[str]
    parts: Sequence[tuple[NDArray[np.int64], ...]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the parts are called."""
        return ("both right", f"only {self.first}", f"only {self.second}", "neither")

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many instances each part has, shape (tasks, 4)."""
        return np.array([[len(part) for part in row] for row in self.parts], dtype=np.int64)


def agreement_of(view: View, first: Ended, second: Ended) -> Agreement | None:
    """Return on which instances two trials with a result agree; None without shared instances.

    Right is a score of at least `RIGHT`. Tasks of graded scores (`View.graded`) are left out.
    """
    a, b = first.evaluation.scores, second.evaluation.scores
    left = view.graded
    tasks = [t for t in view.tasks if t in a and t in b and len(a[t]) == len(b[t]) and t not in left]
    if not tasks:
        return None
    parts = []
    for task in tasks:
        x, y = np.asarray(a[task]) >= RIGHT, np.asarray(b[task]) >= RIGHT
        parts.append(tuple(np.flatnonzero(mask) for mask in (x & y, x & ~y, ~x & y, ~x & ~y)))
    return Agreement(view.called(first), view.called(second), tasks, parts)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What many trials get right, for a reader who chooses two of them.

    Args:
        tasks: names of the tasks, in the configuration's order.
        sizes: instances of each.
        trials: those to choose from; all were asked the same instances.
        right: whether each gets each instance right, task after task, shape (trials, instances).
    """

    tasks: Sequence[str]
    sizes: Sequence[int]
    trials: Sequence[Ended]
    right: NDArray[np.bool_]


def answers_of(view: View, most: int = MOST_ANSWERS) -> Answers | None:
    """Return what the picks, the references and the front get right; None if there are no two to choose from.

    Args:
        view: the study.
        most: how many answers there may be in all; the picks and references have theirs before the front, of which the
            trials that find room are evenly spread along it.
    """
    named = {each.record.number: each.record for each in (*view.picks, *view.references)}
    if not named:
        return None
    sizes = _asked(view, next(iter(named.values())))
    total = max(1, sum(sizes.values()))
    front = [record for record in view.front if record.number not in named]
    room = min(len(front), max(0, most // total - len(named)))
    kept = [front[i] for i in np.linspace(0, len(front) - 1, room).astype(int)]
    trials = [record for record in (*named.values(), *kept) if _asked(view, record) == sizes]
    if len(trials) < 2 or not sizes:
        return None
    rows = [[s for task in sizes for s in r.evaluation.scores[task]] for r in trials]
    return Answers(list(sizes), list(sizes.values()), trials, np.array(rows) >= RIGHT)


def _asked(view: View, record: Ended) -> dict[str, int]:
    """Return how many instances of each task a trial was asked."""
    scores = record.evaluation.scores
    return {task: len(scores[task]) for task in view.tasks if task in scores and task not in view.graded}
