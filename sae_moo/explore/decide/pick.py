"""Picking one trade-off from a front, and saying why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, nearest
from sae_moo.explore.decide.rules import KNEE, Condition, Knee, Lexicographic, PseudoWeighted, Rule, WeightedSum, Wish
from sae_moo.explore.decide.scalarizing import achievement, pseudo_weights, scale
from sae_moo.objectives import SPEED, Objective
from sae_moo.objectives.front import Accuracy
from sae_moo.study.record import Ended

QUANTITY = "a quantity of the study"
NO_SPEED = (
    f". {SPEED.capitalize()} is told of candidates where the configuration has it among its objectives or constraints, "
    f"or a section {SPEED}: {{}}; search with one of these"
)
"""What to do where speed is named and nothing modelled it."""
SAME = 9  # digits that sums of scaled objectives must agree to, to be equal
Array = NDArray[np.float64]


def pick(
    front: Sequence[Ended],
    objectives: Sequence[Objective],
    known: Mapping[str, Objective],
    conditions: Sequence[Condition] = (),
    rule: Rule = KNEE,
    base: Ended | None = None,
) -> tuple[Ended, str]:
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
        InputError: for an unknown quantity; if the front is empty or no trial keeps the conditions, saying which comes
            nearest and which condition is in the way.
    """
    _check_names(conditions, rule, objectives, known)
    _check_together(conditions)
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
                best = max(kept, key=lambda record: record.evaluation.sparsity)
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


def _unit(kept: Sequence[Ended], front: Sequence[Ended], quantities: Sequence[Objective]) -> Array:
    """Return values scaled to [0, 1] over the front, 1 where all are the same; shape (kept, quantities)."""
    whole = _values(front, quantities)
    low, span = whole.min(axis=0), np.ptp(whole, axis=0)
    ones = np.ones((len(kept), len(quantities)))
    found: Array = np.divide(_values(kept, quantities) - low, span, out=ones, where=span > 0)
    return found


def _pseudo_weighted(
    rule: PseudoWeighted,
    kept: Sequence[Ended],
    front: Sequence[Ended],
    objectives: Sequence[Objective],
    among: str,
) -> tuple[Ended, str]:
    asked = np.array([rule.weights.get(objective.name, 0.0) for objective in objectives], dtype=np.float64)
    asked /= asked.sum()
    found = dict(zip((record.number for record in front), pseudo_weights(_values(front, objectives)), strict=True))
    best = min(kept, key=lambda record: float(np.abs(found[record.number] - asked).sum()))

    def told(shares: Array) -> str:
        return ", ".join(f"{o.name} {share:.2f}" for o, share in zip(objectives, shares, strict=True))

    return best, f"pseudo-weights ({told(found[best.number])}) nearest to those asked for ({told(asked)}) {among}"


def _nearest_to_wish(
    rule: Wish, kept: Sequence[Ended], front: Sequence[Ended], known: Mapping[str, Objective], among: str
) -> tuple[Ended, str]:
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
    candidates: Sequence[Ended],
    front: Sequence[Ended],
    conditions: Sequence[Condition],
    known: Mapping[str, Objective],
) -> Ended:
    """Return the candidate that misses conditions the least, each scaled to the front's range."""
    sign = np.array([1.0 if c.at_least else -1.0 for c in conditions])
    whole = _values(front, [known[c.name] for c in conditions]) * sign
    short = achievement(whole, np.array([c.limit for c in conditions]) * sign)
    by_number = dict(zip((record.number for record in front), short.tolist(), strict=True))
    return min(candidates, key=lambda record: by_number[record.number])


def _in_the_way(
    record: Ended,
    front: Sequence[Ended],
    candidates: Sequence[Ended],
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


def _unreachable(front: Sequence[Ended], conditions: Sequence[Condition], known: Mapping[str, Objective]) -> str:
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
    rule: Lexicographic, kept: Sequence[Ended], known: Mapping[str, Objective], among: str
) -> tuple[Ended, str]:
    *earlier, last = rule.names
    left, steps = list(kept), []
    for name in earlier:
        best = max(left, key=lambda record: _value(record, known[name]))
        top, allowed = _value(best, known[name]), rule.tolerance
        if allowed is None:
            allowed = _allowance(known[name].stderr(best.evaluation))
        means = "" if rule.tolerance is not None else ", one standard error of it unless a tolerance is given"
        steps.append(f"within {allowed:.4g} of the best {name} ({top:.4g}{means})")
        left = [record for record in left if _value(record, known[name]) >= top - allowed - 1e-12]
    chosen = max(left, key=lambda record: [_value(record, known[name]) for name in (last, *earlier)])
    lead = f"best {last} ({_value(chosen, known[last]):.4g})"
    return chosen, " ".join([lead, " and ".join(steps), among] if steps else [lead, among])


def _values(records: Sequence[Ended], quantities: Sequence[Objective]) -> Array:
    return np.array([[_value(record, each) for each in quantities] for record in records])


def _allowance(stderr: float) -> float:
    """Return how much less counts as good, by the standard error; nothing where that is unknown (one instance)."""
    return 0.0 if math.isnan(stderr) else stderr


def _value(record: Ended, quantity: Objective) -> float:
    return quantity.value(record.evaluation)


def _check_names(
    conditions: Sequence[Condition], rule: Rule, objectives: Sequence[Objective], known: Mapping[str, Objective]
) -> None:
    for condition in conditions:
        _check_known(f"where {condition}", [condition.name], known)
    match rule:
        case WeightedSum():
            _check_known("weights", rule.weights, known)
        case PseudoWeighted():
            _check_known(
                "pseudo", rule.weights, {objective.name: objective for objective in objectives}, "an objective"
            )
        case Wish():
            _check_known("wish", rule.values, known)
        case Lexicographic():
            _check_known("order", rule.names, known)


def _check_together(conditions: Sequence[Condition]) -> None:
    """Raise InputError if two conditions exclude each other, whatever the front."""
    for low in conditions:
        for high in conditions:
            if low.name == high.name and low.at_least and not high.at_least and low.limit > high.limit:
                raise InputError(f"where {low} and {high}: nothing can keep both")


def _check_known(where: str, names: Iterable[str], known: Mapping[str, Objective], what: str = QUANTITY) -> None:
    for name in names:
        if name not in known:
            more = NO_SPEED if (what, name) == (QUANTITY, SPEED) else ""
            raise InputError(
                f"{where}: expected {what}, one of {', '.join(known)}; got {name!r}{nearest(name, known)}{more}"
            )
