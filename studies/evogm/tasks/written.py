"""How the EvoGM authors' bench judges: by whether the right answer stands in what is written, or who stands by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LAST = 10  # words of a solution in which its result is looked for
REFLECTION = "\nProposed answer:{letter}\nIs the proposed answer true or false? Directly answer with true or false."
VERDICTS = (" true", " false")


def nlgraph(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return 1 where the answer stands anywhere in what was written, else 0."""
    return {"contained": float(document["answer"] in results[0])}


def gsm8k(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return 1 where the answer stands in the last words of what was written, else 0."""
    return {"contained": float(document["answer"] in " ".join(results[0].split(" ")[-LAST:]))}


def proposals(document: Mapping[str, Any]) -> list[str]:
    """Return what a model may answer, its letters, then each of them proposed and called true, and called false."""
    letters: list[str] = document["letters"]
    return [*letters, *(REFLECTION.format(letter=letter) + verdict for letter in letters for verdict in VERDICTS)]


def reliability(document: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return 1 for a right answer that the model calls true, 0 for a wrong one, and 0.5 where it abstains.

    It answers with the most probable letter, and abstains where it rather calls that answer false than true. The
    authors' effective reliability is the mean of 1, -1 and 0: this is half of it, and a half.

    Args:
        document: its `letters`, and the `label` of the right one.
        results: log-probability of each of `proposals`, and whether it is what the model would write.
    """
    count = len(document["letters"])
    answer = max(range(count), key=lambda i: results[i][0])
    true, false = (results[count + len(VERDICTS) * answer + i][0] for i in range(len(VERDICTS)))
    if false > true:
        return {"reliability": 0.5}
    return {"reliability": float(answer == document["label"])}
