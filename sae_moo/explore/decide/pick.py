"""Picking one trade-off from a front, and saying why."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, nearest
from sae_moo.explore.decide.scalarizing import achievement, pseudo_weights, scale
from sae_moo.objectives import Objective
from sae_moo.objectives.front import Accuracy
from sae_moo.study.storage import TrialRecord

SAME = 9  # digits that sums of scaled objectives must agree to, to be equal
_CONDITION = re.compile(r"^\s*(?P<name>.+?)\s*(?P<sign>>=|<=)\s*(?P<limit>[-+.\deE]+)\s*$")


Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit on one quantity: ``name >= limit`` or ``name <= limit``."""

    name: str
    at_least: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Say whether a value keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def missing(self, value: float) -> float:
        """Return by how much a value misses the limit; below 0 if there is room."""
        return self.limit - value if self.at_least else value - self.limit

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.limit:g}"


def parse_condition(text: str, known: Mapping[str, Objective]) -> Condition:
    """Read ``accuracy>=0.7``.

    Raises:
        InputError: if it does not read so, or names an unknown quantity.
    """
    found = _CONDITION.match(text)
    if not found:
        raise InputError(f'--where {text!r}: expected NAME>=NUMBER or NAME<=NUMBER, e.g. "sparsity>=0.3"')
    _check_known(found["name"], known, f"--where {text!r}")
    try:
        return Condition(found["name"], found["sign"] == ">=", float(found["limit"]))
    except ValueError:
        raise InputError(f"--where {text!r}: expected a number, got {found['limit']!r}") from None


@dataclass(frozen=True, slots=True)
class Knee:
    """The largest plain sum of the objectives, each scaled to the front's range.

    With two objectives that is the point farthest above the line through the front's ends.
    """


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The largest weighted sum of quantities, each scaled to the front's range.

    Args:
        weights: quantity -> weight, at least 0, not all 0.
    """

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PseudoWeighted:
    """The trial whose pseudo-weights (`scalarizing.pseudo_weights`) are nearest, by the sum of absolute differences.

    Unlike the largest weighted sum it finds trials in the hollows of a front.

    Args:
        weights: objective -> share, at least 0, not all 0; those not named have 0.
    """

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Wish:
    """The trial nearest to a wish (`scalarizing.achievement`); one that keeps all of it, if there is one.

    Args:
        values: quantity -> wished value, in [0, 1].
    """

    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Lexicographic:
    """The best in the last quantity among those about as good as the best in the earlier ones, taken in their order.

    Args:
        names: quantities, the most important first.
        tolerance: how much less than the best counts as good, in each quantity but the last; None: one standard error
            of the best (0 for sparsity, which is counted).
    """

    names: tuple[str, ...]
    tolerance: float | None = None


Rule: TypeAlias = Knee | WeightedSum | PseudoWeighted | Wish | Lexicographic


def parse_rule(
    known: Mapping[str, Objective],
    objectives: Sequence[Objective],
    *,
    knee: bool = False,
    weights: str | None = None,
    pseudo: str | None = None,
    wish: str | None = None,
    order: str | None = None,
    tolerance: float | None = None,
) -> Rule:
    """Return the one rule that was asked for, as the command line's flags of these names say it; the knee without any.

    Raises:
        InputError: if two are asked for, or one cannot be read.
    """
    given = {"--knee": knee, "--weights": weights, "--pseudo": pseudo, "--wish": wish, "--order": order}
    flags = [flag for flag, value in given.items() if value not in (None, False)]
    if len(flags) > 1:
        raise InputError(f"{' and '.join(flags)} choose differently: give one of them")
    if tolerance is not None and order is None:
        raise InputError(f"--tolerance {tolerance:g}: belongs to --order, which is not given")
    if tolerance is not None and not 0 <= tolerance <= 1:
        raise InputError(f"--tolerance {tolerance:g}: expected a number from 0 to 1")
    if weights is not None:
        return WeightedSum(parse_weights(weights, known))
    if pseudo is not None:
        return PseudoWeighted(parse_weights(pseudo, {o.name: o for o in objectives}, "--pseudo"))
    if wish is not None:
        return Wish(parse_wish(wish, known))
    if order is not None:
        return Lexicographic(parse_order(order, known), tolerance)
    return Knee()


def parse_wish(text: str, known: Mapping[str, Objective]) -> dict[str, float]:
    """Read ``accuracy=0.7,sparsity=0.5``.

    Raises:
        InputError: if it does not read so, names an unknown quantity, or a value is not in [0, 1].
    """
    wish = _parse_numbers(text, known, "--wish")
    for name, value in wish.items():
        if not 0 <= value <= 1:
            raise InputError(f"--wish {text!r}: expected values from 0 to 1, got {name}={value:g}")
    return wish


def parse_order(text: str, known: Mapping[str, Objective]) -> tuple[str, ...]:
    """Read ``accuracy,sparsity``.

    Raises:
        InputError: if a name is unknown, or comes twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    for i, name in enumerate(names):
        _check_known(name, known, f"--order {text!r}")
        if name in names[:i]:
            raise InputError(f"--order {text!r}: expected every quantity once, {name!r} comes again")
    return names


def parse_weights(text: str, known: Mapping[str, Objective], flag: str = "--weights") -> dict[str, float]:
    """Read ``accuracy=2,sparsity=1``.

    Raises:
        InputError: if it does not read so, names an unknown quantity, or no weight is above 0.
    """
    weights = _parse_numbers(text, known, flag)
    for value in weights.values():
        if not 0 <= value < math.inf:
            raise InputError(f"{flag} {text!r}: expected weights of at least 0, got {value:g}")
    if not sum(weights.values()) > 0:
        raise InputError(f"{flag} {text!r}: expected at least one weight above 0")
    return weights


def _parse_numbers(text: str, known: Mapping[str, Objective], flag: str) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        _check_known(name, known, f"{flag} {text!r}")
        if name in numbers:
            raise InputError(f"{flag} {text!r}: expected every quantity once, {name!r} comes again")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise InputError(f"{flag} {text!r}: expected NAME=NUMBER,..., got {part!r}") from None
    return numbers


def pick(
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    known: Mapping[str, Objective],
    conditions: Sequence[Condition] = (),
    rule: Rule = Knee(),
    base: TrialRecord | None = None,
) -> tuple[TrialRecord, str]:
    """Return one trial of the front and the reason for it.

    Args:
        front: the non-dominated trials.
        objectives: the objectives, which knee and pseudo-weights are found over.
        known: every quantity that conditions and the rule may name.
        conditions: what the pick must keep.
        rule: which of the trials that keep them.
        base: the trial of the unmerged base, if there is one. Any model can be pruned to death, which stretches the
            front down to scores that nobody wants; the knee is sought among trials that are at least as accurate as
            the base less one standard error of its accuracy, if there are any.

    Raises:
        InputError: if the front is empty or no trial keeps the conditions, saying which comes nearest and which
            condition is in the way.
    """
    if not front:
        raise InputError("the front is empty: no evaluation so far is feasible")
    kept = [record for record in front if all(c.holds(_value(record, known[c.name])) for c in conditions)]
    if not kept:
        raise InputError(_unreachable(front, conditions, known))
    beyond = below = ""
    if isinstance(rule, Knee) and base is not None and base.values:
        accuracy = Accuracy(objectives)
        least = accuracy.value(base) - _allowance(accuracy.stderr(base))
        able = [record for record in kept if accuracy.value(record) >= least]
        if able:
            kept, beyond = able, " at least as accurate as the base less its standard error"
            front = [record for record in front if accuracy.value(record) >= least]
        else:
            below = f"; none of them is as accurate as the base ({accuracy.value(base):.3f})"
    number = f"the {len(kept)} trials" if len(kept) > 1 else "the one trial"
    among = f"of {number} on the front{beyond}" + "".join(f" with {c}" for c in conditions[:1])
    among += "".join(f" and {c}" for c in conditions[1:])
    match rule:
        case Knee():
            sums = _unit(kept, front, objectives).sum(axis=1).round(SAME)
            best = kept[int(np.argmax(sums))]
            if beyond and len(front) == len(kept) == 2 and sums[0] == sums[1]:
                best = max(kept, key=_zeros)
                return best, f"the knee {among}: the sparser of both, there are none between them{below}"
            meaning = ": largest sum of the objectives, each scaled to the front's range" if len(kept) > 1 else ""
            if meaning and len(objectives) == 2:
                meaning += " (farthest above the line through the front's ends)"
            return best, f"the knee {among}{meaning}{below}"
        case WeightedSum():
            share = np.array(list(rule.weights.values()))
            best = kept[int(np.argmax(_unit(kept, front, [known[name] for name in rule.weights]) @ share))]
            text = ", ".join(f"{name} x {weight:g}" for name, weight in rule.weights.items())
            return best, f"largest weighted sum ({text}, each scaled to the front's range) {among}"
        case PseudoWeighted():
            return _pseudo_weighted(rule, kept, front, objectives, among)
        case Wish():
            return _nearest_to_wish(rule, kept, front, known, among)
        case Lexicographic():
            return _lexicographic(rule, kept, known, among)


def _unit(kept: Sequence[TrialRecord], front: Sequence[TrialRecord], quantities: Sequence[Objective]) -> Array:
    """Return values scaled to [0, 1] over the front, 1 where all are the same; shape (kept, quantities)."""
    whole = _values(front, quantities)
    low, span = whole.min(axis=0), np.ptp(whole, axis=0)
    ones = np.ones((len(kept), len(quantities)))
    found: Array = np.divide(_values(kept, quantities) - low, span, out=ones, where=span > 0)
    return found


def _pseudo_weighted(
    rule: PseudoWeighted,
    kept: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    among: str,
) -> tuple[TrialRecord, str]:
    asked = np.array([rule.weights.get(objective.name, 0.0) for objective in objectives])
    asked /= asked.sum()
    found = dict(zip((record.number for record in front), pseudo_weights(_values(front, objectives)), strict=True))
    best = min(kept, key=lambda record: float(np.abs(found[record.number] - asked).sum()))

    def told(shares: Array) -> str:
        return ", ".join(f"{o.name} {share:.2f}" for o, share in zip(objectives, shares, strict=True))

    return best, f"pseudo-weights ({told(found[best.number])}) nearest to those asked for ({told(asked)}) {among}"


def _nearest_to_wish(
    rule: Wish, kept: Sequence[TrialRecord], front: Sequence[TrialRecord], known: Mapping[str, Objective], among: str
) -> tuple[TrialRecord, str]:
    wishes = [Condition(name, True, value) for name, value in rule.values.items()]
    reached = [record for record in kept if all(wish.holds(_value(record, known[wish.name])) for wish in wishes)]
    best = _nearest(reached or kept, front, wishes, known)
    wanted = ", ".join(f"{name} {value:g}" for name, value in rule.values.items())
    if reached:
        spare = ", ".join(f"{w.name} {max(0.0, -w.missing(_value(best, known[w.name]))):.4g}" for w in wishes)
        return best, f"keeps the wish ({wanted}) with most to spare ({spare}) {among}"
    how = "nearest to the wish" if len(kept) > 1 else "the only one for the wish"
    measure = ", by the largest shortfall, each scaled to the front's range" if len(kept) > 1 else ""
    return best, f"{how} ({wanted}) {among}{measure}; {_in_the_way(best, front, kept, wishes, known)}"


def _nearest(
    candidates: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    conditions: Sequence[Condition],
    known: Mapping[str, Objective],
) -> TrialRecord:
    """Return the candidate that misses conditions the least, each scaled to the front's range."""
    sign = np.array([1.0 if c.at_least else -1.0 for c in conditions])
    whole = _values(front, [known[c.name] for c in conditions]) * sign
    short = achievement(whole, np.array([c.limit for c in conditions]) * sign)
    by_number = dict(zip((record.number for record in front), short.tolist(), strict=True))
    return min(candidates, key=lambda record: by_number[record.number])


def _in_the_way(
    record: TrialRecord,
    front: Sequence[TrialRecord],
    candidates: Sequence[TrialRecord],
    conditions: Sequence[Condition],
    known: Mapping[str, Objective],
) -> str:
    """Say which condition a trial misses most, by how much, and what the front has of it if the others are kept."""
    spans = scale(_values(front, [known[c.name] for c in conditions]))
    missed = sorted(
        (
            (c.missing(_value(record, known[c.name])) / span, c)
            for c, span in zip(conditions, spans.tolist(), strict=True)
            if not c.holds(_value(record, known[c.name]))
        ),
        key=lambda each: -each[0],
    )

    def short(c: Condition) -> str:
        value = _value(record, known[c.name])
        return f"{value:.4g} is {c.missing(value):.4g} {'short of' if c.at_least else 'above'} {c.limit:g}"

    worst = missed[0][1]
    text = f"{worst.name} is in the way: {short(worst)}"
    text += "".join(f", {c.name} {short(c)}" for _, c in missed[1:])
    others = [c for c in conditions if c is not worst]
    able = [each for each in candidates if all(c.holds(_value(each, known[c.name])) for c in others)]
    if others and able:
        reach = (max if worst.at_least else min)(_value(each, known[worst.name]) for each in able)
        text += f"; with {' and '.join(map(str, others))} kept, {worst.name} reaches {reach:.4g}"
    return text


def _unreachable(front: Sequence[TrialRecord], conditions: Sequence[Condition], known: Mapping[str, Objective]) -> str:
    """Say that nothing keeps the conditions, how far the front goes, what comes nearest and what is in its way."""
    reach = ", ".join(
        f"{name} reaches from {min(values):.4g} to {max(values):.4g}"
        for name in dict.fromkeys(c.name for c in conditions)
        for values in [[_value(record, known[name]) for record in front]]
    )
    wanted = " and ".join(str(c) for c in conditions)
    best = _nearest(front, front, conditions, known)
    way = _in_the_way(best, front, front, conditions, known)
    return f"no trial of the front keeps {wanted}; on the front, {reach}; nearest is trial {best.number}, where {way}"


def _lexicographic(
    rule: Lexicographic, kept: Sequence[TrialRecord], known: Mapping[str, Objective], among: str
) -> tuple[TrialRecord, str]:
    *earlier, last = rule.names
    left, steps = list(kept), []
    for name in earlier:
        best = max(left, key=lambda record: _value(record, known[name]))
        top, allowed = _value(best, known[name]), rule.tolerance
        if allowed is None:
            assert best.evaluation is not None
            allowed = _allowance(known[name].stderr(best.evaluation))
        means = "" if rule.tolerance is not None else ", one standard error of it; --tolerance sets another"
        steps.append(f"within {allowed:.4g} of the best {name} ({top:.4g}{means})")
        left = [record for record in left if _value(record, known[name]) >= top - allowed - 1e-12]
    chosen = max(left, key=lambda record: [_value(record, known[name]) for name in (last, *earlier)])
    lead = f"best {last} ({_value(chosen, known[last]):.4g})"
    return chosen, " ".join([lead, " and ".join(steps), among] if steps else [lead, among])


def _values(records: Sequence[TrialRecord], quantities: Sequence[Objective]) -> Array:
    return np.array([[_value(record, each) for each in quantities] for record in records])


def _allowance(stderr: float) -> float:
    """Return how much less counts as good, by the standard error; nothing where that is unknown (one instance)."""
    return 0.0 if math.isnan(stderr) else stderr


def _zeros(record: TrialRecord) -> float:
    return record.evaluation.sparsity if record.evaluation is not None else 0.0


def _value(record: TrialRecord, quantity: Objective) -> float:
    assert record.evaluation is not None
    return quantity.value(record.evaluation)


def _check_known(name: str, known: Mapping[str, Objective], where: str) -> None:
    if name not in known:
        raise InputError(f"{where}: no quantity {name!r}{nearest(name, known)}; there are {', '.join(known)}")
