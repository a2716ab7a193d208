"""Failed evaluations in a row: when a search had better stop, and what to say then."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sae_moo.objectives import Evaluation

LIKELY = (
    ("out of memory", "memory is short: a smaller models.dtype or models.cache_gib, or a device with more of it"),
    ("workers were lost", "memory is short: fewer executor.workers, a smaller models.dtype or models.cache_gib"),
    ("raised", "a task's or a package's own code fails: evaluate with the same configuration shows it on one model"),
    ("not finite", "numbers overflow: models.dtype bfloat16 or float32 has the range, or an expert itself is broken"),
    ("NaN", "numbers overflow: models.dtype bfloat16 or float32 has the range, or an expert itself is broken"),
)
"""Words of a reason, and what they point to; the first that fits."""
SHOWN = 160
"""Characters of a reason that are told."""


class Streak:
    """Counts failed evaluations in a row; any other ends the row. One session's only: another begins anew.

    Args:
        most: how many there may be; 0: any number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reasons: list[str] = []

    def take(self, evaluation: Evaluation) -> None:
        """Count an evaluation; one that was stopped in a race did not fail."""
        if evaluation.ok or evaluation.stopped is not None:
            self._reasons.clear()
        else:
            self._reasons.append(" ".join(str(evaluation.reason).split()))

    @property
    def over(self) -> bool:
        """Whether there were as many as there may be."""
        return 0 < self._most <= len(self._reasons)

    def diagnosis(self) -> str:
        """Return in a line how many there were, for which reasons, and what these point to."""
        by_kind: dict[str, list[str]] = {}
        for reason in self._reasons:
            by_kind.setdefault(re.sub(r"\d+(\.\d+)?", "N", reason), []).append(reason)
        kinds = Counter({kind: len(reasons) for kind, reasons in by_kind.items()}).most_common()
        told = [f"{count} x {_short(by_kind[kind][0])}" for kind, count in kinds[:3]]
        rest = sum(count for _, count in kinds[3:])
        told += [f"{rest} for other reasons"] if rest else []
        return f"{len(self._reasons)} evaluations in a row failed: {'; '.join(told)}. {_likely(kinds[0][0])}"


def _short(reason: str) -> str:
    return reason if len(reason) <= SHOWN else f"{reason[:SHOWN]}..."


def _likely(kind: str, known: Sequence[tuple[str, str]] = LIKELY) -> str:
    found = next((told for words, told in known if words in kind), None)
    return "The reasons say what is wrong" if found is None else f"Likely {found}"
