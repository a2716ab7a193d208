"""Outcomes of searches as lines of text, so that a comparison can go on where their run folders are gone.

A line is a search: at each budget the members of its front by number, and once for each member what it scored on every
instance of the test split. Only scores of 0 and 1 can be kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sae_moo.jobs.compare.statistics import Outcome, Point


def written(outcomes: Mapping[str, Outcome]) -> str:
    """Return the line of one search.

    Args:
        outcomes: budget in words -> what the search had come to by then.

    Raises:
        ValueError: if a score is neither 0 nor 1.
    """
    first = next(iter(outcomes.values()))
    points = {point.number: _point(point) for outcome in outcomes.values() for point in outcome.front}
    budgets = {
        budget: {
            "evaluations": each.evaluations,
            "tokens": each.tokens,
            "seconds": round(each.seconds, 1),
            "front": [point.number for point in each.front],
        }
        for budget, each in outcomes.items()
    }
    document = {"method": first.method, "seed": first.seed, "budgets": budgets, "points": points}
    return json.dumps(document, separators=(",", ":"))


def read(path: Path) -> dict[tuple[str, int], dict[str, Outcome]]:
    """Return method and seed -> budget in words -> what the search had come to by then, of a file of lines."""
    found: dict[tuple[str, int], dict[str, Outcome]] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        document = json.loads(line)
        points = {int(number): _read_point(int(number), row) for number, row in document["points"].items()}
        method, seed = document["method"], document["seed"]
        found[method, seed] = {
            budget: Outcome(
                method,
                seed,
                tuple(points[number] for number in each["front"]),
                each["evaluations"],
                each["seconds"],
                np.zeros((0, 2)),
                each["tokens"],
            )
            for budget, each in document["budgets"].items()
        }
    return found


def lines(searches: Iterable[Mapping[str, Outcome]]) -> str:
    """Return the lines of searches, ordered by seed, in the order given within one."""
    ordered: Sequence[Mapping[str, Outcome]] = sorted(searches, key=lambda each: next(iter(each.values())).seed)
    return "".join(written(each) + "\n" for each in ordered)


def _point(point: Point) -> list[object]:
    scores = {}
    for task, row in point.scores.items():
        if not np.isin(row, (0.0, 1.0)).all():
            raise ValueError(f"trial {point.number}: expected scores of 0 and 1 on {task}")
        scores[task] = [len(row), np.packbits(row.astype(np.uint8)).tobytes().hex()]
    return [point.chosen_by, point.sparsity, scores]


def _read_point(number: int, row: Sequence[object]) -> Point:
    chosen_by, sparsity, scores = row
    unpacked = {
        task: np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(np.float64)
        for task, (count, text) in scores.items()  # type: ignore[attr-defined]
    }
    return Point(number, float(chosen_by), float(sparsity), unpacked)  # type: ignore[arg-type]
