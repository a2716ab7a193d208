"""Cumulative regret of the bandit where an expert and an operator join half-way, on merges that were all evaluated.

    sae-moo search studies/catalogue/pairs.yaml
    python studies/simmerge/bandit.py runs/pairs --table studies/catalogue/pairs.csv

A study of `algorithm: pairs` knows what every merge of two scores, so searches are replayed against it at no cost. Each
seed draws the order of the experts, and which of them and which operator join after half of the merges, when the study
is extended: a new searcher inherits what was evaluated. Regret is what a search's merges lack in sum to those of an
oracle that takes the best merge left at every step; no merge is made twice. Experts by themselves are not counted: every
method may know them.

Random draws evenly from all that is left. The best fixed operator is, per seed, that of the highest mean over all pairs
of the whole table, which no search knows, on pairs in random order, and when it has none left the next best. Greedy is
the bandit with alpha 0. One that begins anew forgets
what it has evaluated, and is held against an oracle that does. All choose by the search split; what the best one of each scores on the test split is read from
the table, if it is given.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_moo.explore.run import Run
from sae_moo.jobs.bench import Bench
from sae_moo.objectives import Evaluation, TaskMean
from sae_moo.prediction.frames import read_csv
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE, Cast, Expert, Recipe
from sae_moo.recipe.operators import Operator, pair_of
from sae_moo.searchers.bandit import BanditSearcher, Contextual
from sae_moo.searchers.ground import Ground
from sae_moo.searchers.pairs import pairs
from sae_moo.study.record import ended

Key = tuple[str, str, str]
"""Operator's name, first and second expert."""
Arm = tuple[Operator, tuple[str, str]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What every merge of two scores.

    Args:
        experts: names.
        operators: all of them.
        tasks: names.
        evaluated: (operator's name, first, second) -> task -> score per instance; of an operator that knows no order
            one order only.
        own: expert, or the base -> the same.
        tested: (operator's name, first, second) -> mean accuracy on the test split; empty where it is not known.
        features: of all pairs.
    """

    experts: tuple[str, ...]
    operators: tuple[Operator, ...]
    tasks: tuple[str, ...]
    evaluated: Mapping[Key, Mapping[str, tuple[float, ...]]]
    own: Mapping[str, Mapping[str, tuple[float, ...]]]
    tested: Mapping[Key, float]
    features: FeatureTable

    @classmethod
    def read(cls, run: Run, features: FeatureTable, table: Path | None) -> World:
        """Read a study of pairs, and what its merges score on the test split."""
        operators = run.config.search.settings["pairs"].chosen
        evaluated, own = {}, {}
        for record in ended(run.trials()):
            pair, node = pair_of(record.asked, operators), record.asked
            if pair is not None and record.evaluation.ok:
                evaluated[pair[0].name, pair[1], pair[2]] = record.evaluation.scores
            elif isinstance(node, Cast) and isinstance(node.input, Expert):
                own[node.input.name] = record.evaluation.scores
        experts = tuple(name for name in run.fingerprints if name != BASE)
        tested = {} if table is None else _tested(table, run.tasks)
        return cls(experts, operators, run.tasks, evaluated, own, tested, features)

    def key(self, arm: Arm) -> Key:
        """Return the key of an arm as it was evaluated: in the other order where there is none."""
        operator, (first, second) = arm
        key = (operator.name, first, second)
        return key if key in self.evaluated or not operator.symmetric else (operator.name, second, first)

    @cached_property
    def values(self) -> dict[Key, float]:
        """Mean accuracy on the search split by key."""
        return {
            key: float(np.mean([np.mean(row) for row in scores.values()])) for key, scores in self.evaluated.items()
        }

    def value(self, arm: Arm) -> float:
        """Return the mean accuracy of an arm on the search split."""
        return self.values[self.key(arm)]

    def evaluation(self, recipe: Recipe) -> Evaluation:
        """Return what evaluating a candidate gave: a merge of two, or one by itself."""
        pair = pair_of(recipe, self.operators)
        if pair is None:
            assert isinstance(recipe, Cast)
            assert isinstance(recipe.input, Expert)
            return Evaluation(recipe, self.own[recipe.input.name])
        return Evaluation(recipe, self.evaluated[self.key((pair[0], pair[1:]))])


def _tested(table: Path, tasks: Sequence[str]) -> dict[Key, float]:
    scores: dict[Key, list[float]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            experts = row["experts"].split(" > ")
            if row["split"] == "test" and len(experts) == 2 and row["task"] in tasks:
                scores.setdefault((row["operators"], *experts), []).append(float(row["score"]))
    return {key: float(np.mean(row)) for key, row in scores.items() if len(row) == len(tasks)}


@dataclass(frozen=True)
class Stage:
    """What there is to choose from for some merges.

    Args:
        experts: in their order.
        operators: likewise.
        pulls: how many merges are made in this stage.
    """

    experts: tuple[str, ...]
    operators: tuple[Operator, ...]
    pulls: int

    @property
    def arms(self) -> list[Arm]:
        """All merges of two."""
        return list(pairs(self.experts, self.operators))


def stages_of(world: World, rng: np.random.Generator, pulls: int) -> list[Stage]:
    """Draw who joins half-way."""
    experts = tuple(str(name) for name in rng.permutation(world.experts))
    late = world.operators[int(rng.integers(len(world.operators)))]
    early = tuple(operator for operator in world.operators if operator != late)
    return [Stage(experts[:-1], early, pulls // 2), Stage(experts, (*early, late), pulls - pulls // 2)]


def by_bandit(world: World, stages: Sequence[Stage], extended: bool = True, **settings: object) -> Iterator[Key]:
    """Yield a bandit's merges; at each stage a new searcher, with the history or without."""
    history: list[Evaluation] = []
    for stage in stages:
        searcher = BanditSearcher(
            Ground(stage.experts, (True,)),
            [TaskMean("accuracy", world.tasks)],
            settings=Contextual.model_validate(
                {"pairs": len(world.values), "levels": [], "operators": written(stage.operators), **settings}
            ),
            features=world.features,
        )
        if extended and history:
            searcher.inherit(history)
        pulled = 0
        while pulled < stage.pulls:
            (proposal,) = searcher.ask(1)
            evaluation = world.evaluation(proposal.recipe)
            searcher.tell(proposal, evaluation)
            history.append(evaluation)
            pair = pair_of(proposal.recipe, world.operators)
            if pair is None:
                continue
            pulled += 1
            yield world.key((pair[0], pair[1:]))


def written(operators: Sequence[Operator]) -> list[dict[str, object]]:
    """Return operators as a YAML has them."""
    return [
        {"name": each.name, "method": each.method, "weights": [*each.weights], "settings": dict(each.settings)}
        for each in operators
    ]


def by_chance(world: World, stages: Sequence[Stage], rng: np.random.Generator) -> Iterator[Key]:
    """Yield merges that are drawn evenly from all that are left."""
    made: set[Key] = set()
    for stage in stages:
        for _ in range(stage.pulls):
            left = [arm for arm in stage.arms if world.key(arm) not in made]
            arm = left[int(rng.integers(len(left)))]
            made.add(world.key(arm))
            yield world.key(arm)


def by_operator(world: World, stages: Sequence[Stage], rng: np.random.Generator) -> Iterator[Key]:
    """Yield the best operators' merges, on pairs in random order."""
    means = {
        operator: np.mean([value for key, value in world.values.items() if key[0] == operator.name])
        for operator in world.operators
    }
    made: set[Key] = set()
    for stage in stages:
        for _ in range(stage.pulls):
            left = [arm for arm in stage.arms if world.key(arm) not in made]
            best = max((operator for operator, _ in left), key=lambda operator: means[operator])
            mine = [arm for arm in left if arm[0] == best]
            arm = mine[int(rng.integers(len(mine)))]
            made.add(world.key(arm))
            yield world.key(arm)


def by_oracle(world: World, stages: Sequence[Stage]) -> Iterator[Key]:
    """Yield the best merges that are left."""
    made: set[Key] = set()
    for stage in stages:
        for _ in range(stage.pulls):
            best = max((arm for arm in stage.arms if world.key(arm) not in made), key=world.value)
            made.add(world.key(best))
            yield world.key(best)


ANEW = "bandit, begun anew"
METHODS = {
    "bandit": lambda world, stages, rng: by_bandit(world, stages),
    "greedy (alpha 0)": lambda world, stages, rng: by_bandit(world, stages, alpha=0.0),
    ANEW: lambda world, stages, rng: by_bandit(world, stages, extended=False),
    "bandit, scores of experts alone": lambda world, stages, rng: by_bandit(world, stages, features=False),
    "bandit, operators by themselves": lambda world, stages, rng: by_bandit(world, stages, shared=0.0),
    "bandit, alpha 0.1": lambda world, stages, rng: by_bandit(world, stages, alpha=0.1),
    "bandit, alpha 1": lambda world, stages, rng: by_bandit(world, stages, alpha=1.0),
    "best fixed operator": by_operator,
    "random": by_chance,
}


def measured(world: World, keys: Sequence[Key], oracle: Sequence[Key], stages: Sequence[Stage]) -> dict[str, float]:
    """Return the numbers of one search."""
    lacking = np.cumsum([world.values[best] - world.values[key] for key, best in zip(keys, oracle, strict=True)])
    half = stages[0].pulls
    chosen = max(keys, key=lambda key: world.values[key])
    joined = {*stages[1].experts} - {*stages[0].experts}, {*stages[1].operators} - {*stages[0].operators}
    new = [key for key in keys[half:] if joined[0] & {*key[1:]} or key[0] in {each.name for each in joined[1]}]
    found = {
        "regret, first half": lacking[half - 1],
        "regret, second half": lacking[-1] - lacking[half - 1],
        "regret": lacking[-1],
        "best missed by": max(world.values.values()) - world.values[chosen],
        "of who joined": len(new) / (len(keys) - half),
    }
    if world.tested:
        found["test accuracy of its best"] = world.tested[chosen]
    return {name: float(value) for name, value in found.items()}


def interval(values: Array, rng: np.random.Generator) -> str:
    """Return a mean with its 95 % bootstrap interval over seeds."""
    means = values[rng.integers(len(values), size=(10_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished study of algorithm: pairs")
    parser.add_argument("--table", type=Path, help="what its merges score on both splits")
    parser.add_argument("--features", type=Path, help="features of its pairs; else they are made")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pulls", type=int, default=60, help="merges of two; half of them before the others join")
    asked = parser.parse_args()
    run = Run.open(asked.run)
    features = Bench.open(run.config).features() if asked.features is None else read_csv(asked.features)
    world = World.read(run, features, asked.table)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(asked.seeds):
        stages = stages_of(world, np.random.default_rng([seed, 0]), asked.pulls)
        oracle = list(by_oracle(world, stages))
        for name, method in METHODS.items():
            keys = list(method(world, stages, np.random.default_rng([seed, 1])))
            best = oracle
            if name == ANEW:  # it makes merges a second time, and so may its oracle
                best = [key for stage in stages for key in by_oracle(world, [stage])]
            rows[name].append(measured(world, keys, best, stages))
    columns = list(rows["bandit"][0])
    print(f"{len(world.values)} merges of {len(world.experts)} experts, {asked.pulls} made, {asked.seeds} seeds")
    print()
    print(f"| | {' | '.join(columns)} | regret beyond the bandit's |")
    print(f"| --- |{' --- |' * (len(columns) + 1)}")
    reference = np.array([row["regret"] for row in rows["bandit"]])
    for name, found in rows.items():
        rng = np.random.default_rng(0)
        cells = [interval(np.array([row[column] for row in found]), rng) for column in columns]
        beyond = interval(np.array([row["regret"] for row in found]) - reference, rng)
        print(f"| {name} | {' | '.join(cells)} | {'' if name == 'bandit' else beyond} |")


if __name__ == "__main__":
    main()
