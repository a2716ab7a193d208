"""Picking one trade-off from a front, and saying why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, nearest
from sae_moo.objectives import Objective
from sae_moo.storage import TrialRecord

_CONDITION = re.compile(r"^\s*(?P<name>.+?)\s*(?P<sign>>=|<=)\s*(?P<limit>[-+.\deE]+)\s*$")


@dataclass(frozen=True, slots=True)
class Condition:
    """A limit on one quantity: ``name >= limit`` or ``name <= limit``."""

    name: str
    at_least: bool
    limit: float

    def holds(self, value: float) -> bool:
        """Say whether a value keeps the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

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


def parse_weights(text: str, known: Mapping[str, Objective]) -> dict[str, float]:
    """Read ``accuracy=2,sparsity=1``.

    Raises:
        InputError: if it does not read so, names an unknown quantity, or no weight is above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        _check_known(name, known, f"--weights {text!r}")
        if name in weights:
            raise InputError(f"--weights {text!r}: expected every quantity once, {name!r} comes again")
        try:
            weights[name] = float(number)
        except ValueError:
            raise InputError(f"--weights {text!r}: expected NAME=NUMBER,..., got {part!r}") from None
        if not 0 <= weights[name] < float("inf"):
            raise InputError(f"--weights {text!r}: expected weights of at least 0, got {number}")
    if not sum(weights.values()) > 0:
        raise InputError(f"--weights {text!r}: expected at least one weight above 0")
    return weights


def pick(
    front: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    known: Mapping[str, Objective],
    conditions: Sequence[Condition] = (),
    weights: Mapping[str, float] | None = None,
    base: TrialRecord | None = None,
) -> tuple[TrialRecord, str]:
    """Return one trial of the front and the reason for it.

    Args:
        front: the non-dominated trials.
        objectives: the objectives, which the knee is found over.
        known: every quantity that conditions and weights may name.
        conditions: what the pick must keep.
        weights: quantity -> weight; the largest weighted sum of quantities scaled to [0, 1] over the front wins. None
            picks the knee: the largest plain sum of the objectives so scaled. With two objectives that is the point
            farthest above the line through the front's ends.
        base: the trial of the unmerged base, if there is one. Any model can be pruned to death, which stretches the
            front down to scores that nobody wants; the knee is sought among trials at least as accurate as the base.

    Raises:
        InputError: if the front is empty or no trial keeps the conditions, saying how close it comes.
    """
    if not front:
        raise InputError("the front is empty: no evaluation so far is feasible")
    kept = [record for record in front if all(c.holds(_value(record, known[c.name])) for c in conditions)]
    if not kept:
        reach = ", ".join(
            f"{c.name} reaches from {min(values):.4g} to {max(values):.4g}"
            for c in conditions
            for values in [[_value(record, known[c.name]) for record in front]]
        )
        wanted = " and ".join(str(c) for c in conditions)
        raise InputError(f"no trial of the front keeps {wanted}; on the front, {reach}")
    beyond = ""
    if weights is None and base is not None and base.values:
        able = [record for record in kept if _accuracy(record, objectives) >= _accuracy(base, objectives)]
        if able:
            kept, beyond = able, " at least as accurate as the base"
            front = [record for record in front if _accuracy(record, objectives) >= _accuracy(base, objectives)]
    number = f"the {len(kept)} trials" if len(kept) > 1 else "the one trial"
    among = f"of {number} on the front{beyond}" + "".join(f" with {c}" for c in conditions[:1])
    among += "".join(f" and {c}" for c in conditions[1:])
    scale = objectives if weights is None else [known[name] for name in weights]
    share = np.ones(len(scale)) if weights is None else np.array(list(weights.values()))
    whole = np.array([[_value(record, each) for each in scale] for record in front])
    low, span = whole.min(axis=0), np.ptp(whole, axis=0)
    unit = np.divide(
        np.array([[_value(record, each) for each in scale] for record in kept]) - low,
        span,
        out=np.ones((len(kept), len(scale))),
        where=span > 0,
    )
    gain: NDArray[np.float64] = unit @ share
    best = kept[int(np.argmax(gain))]
    if weights is None:
        reason = ": largest sum of the objectives, each scaled to the front's range" if len(kept) > 1 else ""
        return best, f"the knee {among}{reason}"
    text = ", ".join(f"{name} x {weight:g}" for name, weight in weights.items())
    return best, f"largest weighted sum ({text}, each scaled to the front's range) {among}"


def _accuracy(record: TrialRecord, objectives: Sequence[Objective]) -> float:
    return float(np.mean([record.values[objective.name] for objective in objectives if objective.tasks] or [0.0]))


def _value(record: TrialRecord, quantity: Objective) -> float:
    assert record.evaluation is not None
    return quantity.value(record.evaluation)


def _check_known(name: str, known: Mapping[str, Objective], where: str) -> None:
    if name not in known:
        raise InputError(f"{where}: no quantity {name!r}{nearest(name, known)}; there are {', '.join(known)}")
