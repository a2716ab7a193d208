"""Tabulate a study of all pairs: ``python studies/catalogue/table.py RUN --output pairs.csv``.

Every expert and merge that the study has evaluated is scored on the test split too, and with them a sample of merges of
three experts, ``((a op b) op c)``: for each of some drawn subsets of three, some orders with some operators. A row is
what one model has scored on one task's split.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import torch

from sae_moo.errors import InputError
from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.jobs.judge import bench_of, judge
from sae_moo.objectives.scores import Scores
from sae_moo.recipe import Cast, Expert, Recipe
from sae_moo.recipe.operators import Operator, chain_of, chained
from sae_moo.recipe.section import section_of
from sae_moo.searchers.pairs import Pairs
from sae_moo.study.record import ended

log = logging.getLogger(__name__)

COLUMNS = ("operators", "experts", "task", "split", "score", "instances")
BETWEEN = " > "
SLICE = 30
"""Models that are scored on the test split before their scores are kept."""

Made = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of operators, and of the experts they merge in their order: one more."""
Models = dict[Made, tuple[Recipe, Scores]]
"""Of each its recipe, as it was evaluated, and its scores on the search split."""


def chains(
    operators: Sequence[Operator], experts: Sequence[str], subsets: int, each: int
) -> Iterator[tuple[tuple[Operator, ...], tuple[str, ...]]]:
    """Draw subsets of three experts, and for each of them some chains of two operators: orders and operators."""
    rng = np.random.default_rng(0)
    threes = [*combinations(experts, 3)]
    for place in sorted(rng.choice(len(threes), min(subsets, len(threes)), replace=False)):
        every = [*product(product(operators, repeat=2), permutations(threes[place]))]
        for drawn in rng.choice(len(every), each, replace=False):
            yield every[drawn]


def evaluated(run: Run, operators: Sequence[Operator]) -> Models:
    """Return what the study has evaluated.

    Raises:
        InputError: if a trial is not finished, or anything else than an expert or a merge by one of the operators.
    """
    models: Models = {}
    for record in ended(run.trials()):
        scores = {task: np.array(row) for task, row in record.evaluation.scores.items()}
        inner = record.recipe.input if isinstance(record.recipe, Cast) else record.recipe
        chain = ((), (inner.name,)) if isinstance(inner, Expert) else chain_of(record.recipe, operators)
        if not record.evaluation.ok or chain is None:
            raise InputError(f"trial {record.number}: expected a finished expert or merge by one of the operators")
        models[tuple(operator.name for operator in chain[0]), chain[1]] = (record.recipe, scores)
    return models


def chained_models(bench: Bench, drawn: Iterable[tuple[tuple[Operator, ...], tuple[str, ...]]]) -> Models:
    """Evaluate chains on the search split."""
    ground, evaluator, models = bench.ground(), bench.evaluator(), Models()
    for operators, experts in drawn:
        evaluation = evaluator.evaluate(ground.candidate(chained(operators, experts)))
        scores = {task: np.array(row) for task, row in evaluation.scores.items()}
        models[tuple(operator.name for operator in operators), experts] = (evaluation.recipe, scores)
        if len(models) % SLICE == 0:
            log.info("%d chains on the search split", len(models))
    return models


def tested(run: Run, bench: Bench, models: Models) -> dict[Made, Scores]:
    """Score models on the test split, as far as the run folder has no scores of them yet."""
    made, scores = [*models], dict[Made, Scores]()
    for start in range(0, len(made), SLICE):
        digests = {each: models[each][0].digest(bench.pool) for each in made[start : start + SLICE]}
        judged = judge(run, bench, {digest: models[each][0] for each, digest in digests.items()})
        scores |= {each: judged[digest] for each, digest in digests.items()}
        log.info("%d of %d models on the test split", len(scores), len(made))
    return scores


def rows(models: Models, test: Mapping[Made, Scores]) -> Iterator[tuple[str | int, ...]]:
    """Yield a row for each model, split and task: models in their order, tasks in that of the study."""
    for (operators, experts), (_, search) in models.items():
        for split, scores in (("search", search), ("test", test[operators, experts])):
            for task, row in scores.items():
                score = f"{row.mean():.6f}".rstrip("0").removesuffix(".")
                yield BETWEEN.join(operators), BETWEEN.join(experts), task, split, score, len(row)


def write(path: Path, lines: Iterable[tuple[str | int, ...]]) -> None:
    """Write a table, in place of the one that is there."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Tabulate a study of all pairs.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--output", type=Path, required=True, help="the CSV to write")
    parser.add_argument("--subsets", type=int, default=24, help="subsets of three experts to draw")
    parser.add_argument("--chains", type=int, default=5, help="chains to evaluate for each of them")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # as a worker of a search has it
    run = Run.open(options.run)
    bench = bench_of(run)
    operators = section_of(run.config.search.settings, Pairs).chosen
    models = evaluated(run, operators)
    write(options.output, rows(models, tested(run, bench, models)))
    models |= chained_models(bench, chains(operators, bench.ground().experts, options.subsets, options.chains))
    write(options.output, rows(models, tested(run, bench, models)))


if __name__ == "__main__":
    main()
