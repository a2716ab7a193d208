"""Describe a table of all pairs: ``python studies/catalogue/describe.py studies/catalogue/pairs.csv [--split test]``.

Prints Markdown. A symmetric operator, of which the table has one order, stands for both. The accuracy of a model is the
mean over the tasks; its standard error counts items as drawn independently.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEAN = "mean"
Key = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of operators, and of experts."""
CLEAR = 1.96
"""Standard errors that a difference of 95 % confidence has."""


def read(path: Path, split: str) -> tuple[dict[str, dict[Key, float]], float]:
    """Return task, or `MEAN` -> model -> accuracy; and the standard error of a mean at an accuracy of a half."""
    by_task: dict[str, dict[Key, float]] = {}
    instances: dict[str, int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                key = (tuple(filter(None, row["operators"].split(" > "))), tuple(row["experts"].split(" > ")))
                by_task.setdefault(row["task"], {})[key] = float(row["score"])
                instances[row["task"]] = int(row["instances"])
    tasks = [*by_task]
    by_task[MEAN] = {key: float(np.mean([by_task[task][key] for task in tasks])) for key in by_task[tasks[0]]}
    return by_task, math.sqrt(sum(0.25 / instances[task] for task in tasks)) / len(tasks)


def grid(scores: Mapping[Key, float]) -> tuple[list[str], list[tuple[str, str]], NDArray[np.float64]]:
    """Return operators, ordered pairs, and accuracy as an array of shape (pairs, operators)."""
    operators = [*dict.fromkeys(each[0] for each, names in scores if len(names) == 2)]
    experts = [names[0] for each, names in scores if not each and names != ("base",)]
    pairs = [*permutations(experts, 2)]
    values = [
        [scores.get(((op,), (a, b)), scores.get(((op,), (b, a)), math.nan)) for op in operators] for a, b in pairs
    ]
    return operators, pairs, np.array(values)


def ordered(scores: Mapping[Key, float]) -> list[str]:
    """Return the operators that the table has both orders of."""
    return [*dict.fromkeys(each[0] for each, names in scores if len(names) == 2 and (each, names[::-1]) in scores)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)) + "\n"


def by_operator(by_task: Mapping[str, Mapping[Key, float]]) -> str:
    """Return how each operator does over all ordered pairs."""
    operators, pairs, values = grid(by_task[MEAN])
    best = values.max(1, keepdims=True)
    wins = (values == best) / (values == best).sum(1, keepdims=True)
    parents = np.array([max(by_task[MEAN][(), (name,)] for name in pair) for pair in pairs])
    tasks = [task for task in by_task if task != MEAN]
    rows = []
    for i in np.argsort(-values.mean(0)):
        column = values[:, i]
        rows.append(
            [
                operators[i],
                f"{column.mean():.3f}",
                f"{column.std():.3f}",
                *(f"{grid(by_task[task])[2][:, i].mean():.3f}" for task in tasks),
                f"{wins[:, i].mean():.0%}",
                f"{(best[:, 0] - column).mean():.3f}",
                f"{(column > parents).mean():.0%}",
            ]
        )
    rows.append(
        ["best of each pair", f"{best.mean():.3f}", f"{best.std():.3f}"]
        + [f"{grid(by_task[task])[2].max(1).mean():.3f}" for task in tasks]
        + ["", "", f"{(best[:, 0] > parents).mean():.0%}"]
    )
    heads = ["operator", "mean", "SD over pairs", *tasks, "wins", "short of the best", "above the better expert"]
    return table(heads, rows)


def spread(by_task: Mapping[str, Mapping[Key, float]]) -> str:
    """Return where the variance of accuracy lies: two-way analysis over ordered pairs and operators."""
    rows = []
    for task, scores in by_task.items():
        _, pairs, values = grid(scores)
        experts = [*dict.fromkeys(pair[0] for pair in pairs)]
        seen = np.array([[name in pair for name in experts] for pair in pairs], dtype=float)
        of_pairs, of_operators = values.mean(1), values.mean(0)
        fitted = seen @ np.linalg.lstsq(seen, of_pairs, rcond=None)[0]
        total = values.var()
        rest = values - of_pairs[:, None] - of_operators + values.mean()
        rows.append(
            [
                task,
                f"{math.sqrt(total):.3f}",
                f"{of_pairs.var() / total:.0%}",
                f"{fitted.var() / total:.0%}",
                f"{of_operators.var() / total:.0%}",
                f"{rest.var() / total:.0%}",
                f"{np.mean(values.max(1) - values.min(1)):.3f}",
                f"{np.mean(values.max(1) - np.median(values, 1)):.3f}",
            ]
        )
    heads = ["", "SD", "pairs", "sums of one number an expert alone", "operators", "pair and operator together"]
    return table([*heads, "best minus worst operator, mean over pairs", "best minus median"], rows)


def order(by_task: Mapping[str, Mapping[Key, float]], error: float) -> str:
    """Return how much the order of two experts counts."""
    scores = by_task[MEAN]
    experts = [names[0] for each, names in scores if not each and names != ("base",)]
    rows = []
    for name in ordered(scores):
        there = [(pair, scores[(name,), pair], scores[(name,), pair[::-1]]) for pair in combinations(experts, 2)]
        differences = np.array([one - other for _, one, other in there])
        better = [
            (one > other) == (scores[(), pair[:1]] > scores[(), pair[1:]]) for pair, one, other in there if one != other
        ]
        rows.append(
            [
                name,
                f"{abs(differences).mean():.3f}",
                f"{abs(differences).max():.3f}",
                f"{(abs(differences) > CLEAR * math.sqrt(2) * error).mean():.0%}",
                f"{np.mean(better):.0%}",
            ]
        )
    heads = ["operator", "difference of the orders, mean", "largest", "beyond chance", "better expert first is better"]
    return table(heads, rows)


def choice(by_task: Mapping[str, Mapping[Key, float]], other: Mapping[str, Mapping[Key, float]]) -> str:
    """Return what choosing is worth, over unordered pairs: operator and order together; `other` is the other split."""
    rows = []
    for task, scores in by_task.items():
        operators, pairs, values = grid(scores)
        place = {pair: i for i, pair in enumerate(pairs)}
        places = np.array([[place[pair], place[pair[::-1]]] for pair in pairs if pair[0] < pair[1]])
        flat = values[places].reshape(len(places), -1)
        chosen = grid(other[task])[2][places].reshape(len(places), -1).argmax(1)
        fixed = values.mean(0)
        rows.append(
            [
                task,
                f"{flat.mean():.3f}",
                f"{fixed.max():.3f} ({operators[int(fixed.argmax())]})",
                f"{flat[np.arange(len(flat)), chosen].mean():.3f}",
                f"{flat.max(1).mean():.3f}",
                f"{np.mean([max(scores[(), (n,)] for n in pair) for pair in pairs]):.3f}",
            ]
        )
    heads = ["", "drawn operator", "best fixed operator", "what the other split says is best", "best of each pair"]
    return table([*heads, "better expert, unmerged"], rows)


def chained(by_task: Mapping[str, Mapping[Key, float]]) -> str:
    """Return how merges of three do, by the drawn subsets of experts."""
    rows = []
    for task, scores in by_task.items():
        subsets: dict[frozenset[str], list[float]] = {}
        above = []
        for (operators, names), score in scores.items():
            if len(operators) == 2:
                subsets.setdefault(frozenset(names), []).append(score)
                above.append(score > max(scores[(), (name,)] for name in names))
        if not subsets:
            return "no chains\n"
        of_pairs = [
            max(v for (ops, names), v in scores.items() if len(ops) == 1 and set(names) <= subset) for subset in subsets
        ]
        values = [*subsets.values()]
        rows.append(
            [
                task,
                f"{np.mean([np.mean(v) for v in values]):.3f}",
                f"{np.std([np.mean(v) for v in values]):.3f}",
                f"{np.mean([np.std(v, ddof=1) for v in values]):.3f}",
                f"{np.mean([max(v) for v in values]):.3f}",
                f"{np.mean(of_pairs):.3f}",
                f"{np.mean(above):.0%}",
            ]
        )
    heads = ["", "mean", "SD between subsets", "SD within", "best chain of a subset", "best pair of it"]
    return table([*heads, "above the best expert"], rows)


def alike(by_task: Mapping[str, Mapping[Key, float]], against: Mapping[str, Mapping[Key, float]]) -> str:
    """Return correlations with another catalogue of experts of the same names, and what its best operators are worth."""
    rows = []
    for task in by_task:
        own, other = (grid(scores[task])[2] for scores in (by_task, against))
        parts = [
            (values.mean(1), values.mean(0), values - values.mean(1, keepdims=True) - values.mean(0))
            for values in (own, other)
        ]
        correlations = [np.corrcoef(one.ravel(), two.ravel())[0, 1] for one, two in zip(*parts, strict=True)]
        taken = own[np.arange(len(own)), other.argmax(1)].mean()
        rows.append(
            [task, *(f"{value:.2f}" for value in correlations), f"{(own.argmax(1) == other.argmax(1)).mean():.0%}"]
            + [f"{value:.3f}" for value in (own.mean(0).max(), taken, own.max(1).mean())]
        )
    heads = ["", "pairs", "operators", "pair and operator together", "same operator best", "best fixed operator"]
    return table([*heads, "the operator that is best there", "best of each ordered pair"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Describe a table of all pairs.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--split", choices=["search", "test"], default="test")
    parser.add_argument("--against", type=Path, help="the table of another catalogue of experts of these names")
    options = parser.parse_args(arguments)
    by_task, error = read(options.table, options.split)
    other, _ = read(options.table, "search" if options.split == "test" else "test")
    operators = grid(by_task[MEAN])[0]
    both = ordered(by_task[MEAN])
    print(f"{options.table.name}, {options.split} split; standard error of a mean at most {error:.3f}.")
    print(f"Symmetric: {', '.join(name for name in operators if name not in both)}\n")
    print(by_operator(by_task))
    print(spread(by_task))
    print(order(by_task, error))
    print(choice(by_task, other))
    print(chained(by_task))
    if options.against:
        print(f"Correlation with {options.against.name}\n")
        print(alike(by_task, read(options.against, options.split)[0]))


if __name__ == "__main__":
    main()
