"""What the flags that pick a trial say: ``--where "sparsity>=0.4"``, ``--weights accuracy=2,sparsity=1``."""

from __future__ import annotations

from collections.abc import Sequence

from sae_moo.errors import InputError
from sae_moo.explore.decide.rules import Condition, Rule, rule_of
from sae_moo.explore.view import View
from sae_moo.study.record import Ended


def picked(
    view: View,
    where: Sequence[str],
    *,
    knee: bool,
    weights: str | None,
    pseudo: str | None,
    wish: str | None,
    order: str | None,
    tolerance: float | None,
) -> tuple[Ended, str]:
    """Return the trial that these flags choose, and why."""
    rule = rule_said(knee=knee, weights=weights, pseudo=pseudo, wish=wish, order=order, tolerance=tolerance)
    return view.pick([Condition.parse(text) for text in where], rule)


def rule_said(
    *, knee: bool, weights: str | None, pseudo: str | None, wish: str | None, order: str | None, tolerance: float | None
) -> Rule:
    """Return the rule that these flags say.

    Raises:
        InputError: if one does not read as it should, or they do not say one rule.
    """
    return rule_of(
        knee=knee,
        weights=_numbers("--weights", weights),
        pseudo=_numbers("--pseudo", pseudo),
        wish=_numbers("--wish", wish),
        order=None if order is None else [name.strip() for name in order.split(",")],
        tolerance=tolerance,
    )


def _numbers(flag: str, text: str | None) -> dict[str, float] | None:
    """Read ``accuracy=2,sparsity=1``."""
    if text is None:
        return None
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name in numbers:
            raise InputError(f"{flag} {text!r}: expected every quantity once, {name!r} comes again")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise InputError(f"{flag} {text!r}: expected NAME=NUMBER,..., got {part!r}") from None
    return numbers
