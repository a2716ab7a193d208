"""How the EvoGM authors' bench judges what a model writes: by whether the right answer stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LAST = 10  # words of a solution in which its result is looked for


def nlgraph(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return 1 where the answer stands anywhere in what was written, else 0."""
    return {"contained": float(document["answer"] in results[0])}


def gsm8k(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return 1 where the answer stands in the last words of what was written, else 0."""
    return {"contained": float(document["answer"] in " ".join(results[0].split(" ")[-LAST:]))}
