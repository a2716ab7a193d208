"""How well are merges predicted that nobody has made? Pairs, experts and an architecture are left out; test split.

    python studies/simmerge/leave.py --scores studies/catalogue/pairs.csv --features features.csv \\
        [--other-scores studies/catalogue/pairs-gpt_neox.csv --other-features features-gpt_neox.csv]

`studies/catalogue/table.py` makes the scores of a study of all pairs, `sae-moo predict CONFIG --features` the features.
Predictors learn from the search split; what they say is held against the test split, which they never see. Intervals of
differences and shares are those of a bootstrap over experts: a pair counts as often as both of its experts are drawn.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np

from sae_moo.prediction.correlations import correlations, spearman
from sae_moo.prediction.folds import folds_of
from sae_moo.prediction.frames import read_csv
from sae_moo.prediction.observations import Observation, own_scores
from sae_moo.prediction.predictor import Prediction, Predictor
from sae_moo.prediction.table import FeatureTable
from sae_moo.prediction.untrained import chain_signal, untrained
from sae_moo.recipe.operators import Operator, named

BETWEEN = " > "
VARIANTS = {
    "main effects": (("main effects",), False),
    "features": (("features", "features by task"), False),
    "features and effects": (("features", "features by task", "features and effects"), False),
    "own scores": (("own scores",), True),
    "all": (None, True),
}
"""Name -> the regressions that are chosen among (the main effects are in all), and whether own scores are known."""
DRAWS = 2000
PARTS = ("features", "pairs", "experts", "chains", "other")
Merge = tuple[str, str, str]  # operator, first, second


class Scores:
    """What a table of results holds of one split.

    Args:
        file: the table.
        split: search or test.
    """

    def __init__(self, file: Path, split: str) -> None:
        self.observations: list[Observation] = []
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row["split"] == split:
                    operators = tuple(row["operators"].split(BETWEEN)) if row["operators"] else ()
                    experts = tuple(row["experts"].split(BETWEEN))
                    score, instances = float(row["score"]), int(row["instances"])
                    self.observations.append(Observation(operators, experts, row["task"], score, instances))
        self.own = own_scores(self.observations)
        self.tasks = tuple(dict.fromkeys(each.task for each in self.observations))
        merges = [each for each in self.observations if each.operator is not None]
        self.operators = named(*dict.fromkeys(each.operator for each in merges))
        symmetric = {each.name: each.symmetric for each in self.operators}
        self.experts = tuple(sorted({name for each in merges for name in each.experts}))
        self.of: dict[tuple[str, str, str, str], float] = {}
        for each in merges:
            for pair in (each.experts, each.experts[::-1])[: 1 + symmetric[each.operator]]:
                self.of[each.operator, *pair, each.task] = each.score
        self.chains = {
            (each.operators, each.experts, each.task): each.score for each in self.observations if len(each.experts) > 2
        }

    def mean(self, operator: str, first: str, second: str) -> float:
        """Return the mean score of a merge over the tasks."""
        return float(np.mean([self.of[operator, first, second, task] for task in self.tasks]))


def learned(
    table: FeatureTable, observations: Sequence[Observation], operators: Sequence[Operator], variant: str
) -> Predictor:
    models, labelled = VARIANTS[variant]
    kept = observations if labelled else [each for each in observations if each.operators]
    return Predictor.learn(table, kept, operators, models=models)


def held_out(
    table: FeatureTable, search: Scores, unseen: int, variant: str
) -> dict[tuple[str, str, str, str], Prediction]:
    """Return what is predicted of merges by predictors that have not seen their pairs, or one of their experts.

    Of a merge in several folds (each of its experts is left out once), the predictions are of the first.
    """
    found: dict[tuple[str, str, str, str], Prediction] = {}
    pairs = list(permutations(search.experts, 2))
    for fold in folds_of(pairs, unseen):
        out = {frozenset(pairs[place]) for place in fold.held_out}
        rest = [
            each
            for each in search.observations
            if len(each.experts) == 1 or (len(each.experts) == 2 and frozenset(each.experts) not in out)
        ]
        predictor = learned(table, rest, search.operators, variant)
        asked = [
            ((operator.name,), pairs[place], task)
            for operator in search.operators
            for place in fold.held_out
            for task in search.tasks
        ]
        for (operators, pair, task), prediction in zip(asked, predictor.chains(asked), strict=True):
            found.setdefault((operators[0], *pair, task), prediction)
    return found


def each_merge(operators: Sequence[Operator], experts: Sequence[str]) -> Iterator[Merge]:
    """Yield all merges of two, both orders of a symmetric operator once."""
    for operator in operators:
        for pair in combinations(experts, 2) if operator.symmetric else permutations(experts, 2):
            yield operator.name, *pair


# Statistics


def bootstrap(
    experts: Sequence[str], pairs: Sequence[tuple[str, str]], statistic: Callable[[np.ndarray], float]
) -> str:
    """Return a statistic of weighted pairs with its 95 % interval, experts drawn with replacement."""
    rng = np.random.default_rng(0)
    place = {name: i for i, name in enumerate(experts)}
    ends = np.array([[place[name] for name in pair] for pair in pairs])
    values = []
    for _ in range(DRAWS):
        often = np.bincount(rng.integers(0, len(experts), len(experts)), minlength=len(experts))
        weights = often[ends].prod(axis=1).astype(float)
        if weights.sum():
            values.append(statistic(weights))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"{statistic(np.ones(len(pairs))):.3f} [{low:.3f}, {high:.3f}]"


def table_(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def rank_correlations(predicted: dict[str, dict], test: Scores) -> None:
    """Print the rank correlation of prediction and truth, for each operator and task."""
    shown = next(iter(predicted))
    rows = []
    for operator in test.operators:
        merges = [
            merge for merge in each_merge([operator], test.experts) if (*merge, test.tasks[0]) in predicted[shown]
        ]
        row: list[object] = [operator.name, len(merges)]
        for of in predicted.values():
            rhos = [
                spearman([of[*merge, task].score for merge in merges], [test.of[*merge, task] for merge in merges])
                for task in test.tasks
            ]
            row.append(" / ".join(f"{rho:.2f}" for rho in rhos))
        rows.append(row)
    overall: list[object] = ["mean", ""]
    for of in predicted.values():
        rhos = []
        for operator in test.operators:
            merges = [merge for merge in each_merge([operator], test.experts) if (*merge, test.tasks[0]) in of]
            rhos += [
                spearman([of[*merge, task].score for merge in merges], [test.of[*merge, task] for merge in merges])
                for task in test.tasks
            ]
        overall.append(float(np.mean(rhos)))
    print(f"Spearman's rank correlation over pairs, tasks in the order {', '.join(test.tasks)}\n")
    table_(["operator", "merges", *predicted], [*rows, overall])
    errors: list[object] = ["root mean square error"]
    for of in predicted.values():
        errors.append(float(np.sqrt(np.mean([(each.score - test.of[key]) ** 2 for key, each in of.items()]))))
    table_(["", *predicted], [errors])


def choices(predicted: dict[str, dict], search: Scores, test: Scores) -> None:
    """Print what is gained by choosing operator and order of each pair by prediction; the mean of the tasks counts."""
    pairs = list(combinations(test.experts, 2))
    merges = {pair: [m for m in each_merge(test.operators, test.experts) if {*m[1:]} == {*pair}] for pair in pairs}
    truth = {pair: [test.mean(*merge) for merge in merges[pair]] for pair in pairs}
    oracle = np.array([max(truth[pair]) for pair in pairs])
    best_expert = np.array(
        [max(np.mean([test.own[name, task] for task in test.tasks]) for name in pair) for pair in pairs]
    )
    lower = np.array([np.mean([min(test.own[name, task] for name in pair) for task in test.tasks]) for pair in pairs])
    upper = np.array([np.mean([max(test.own[name, task] for name in pair) for task in test.tasks]) for pair in pairs])

    def fixed(pair: tuple[str, str]) -> float:
        """Return what the operator gives that is best by the search split on pairs without this one; any order."""
        of = {
            operator.name: np.mean(
                [search.mean(operator.name, *other) for other in permutations(test.experts, 2) if {*other} != {*pair}]
            )
            for operator in test.operators
        }
        best = max(of, key=of.get)
        return float(np.mean([test.mean(best, *order) for order in (pair, pair[::-1])]))

    def by_search(pair: tuple[str, str]) -> float:
        """Return what is chosen by making and evaluating all merges of a pair on the search split."""
        return truth[pair][int(np.argmax([search.mean(*merge) for merge in merges[pair]]))]

    def chosen(of: dict, pair: tuple[str, str]) -> float:
        return truth[pair][
            int(np.argmax([np.mean([of[*merge, task].score for task in test.tasks]) for merge in merges[pair]]))
        ]

    base = np.array([fixed(pair) for pair in pairs])
    got = {
        "better expert of the two": best_expert,
        "random": np.array([np.mean(truth[pair]) for pair in pairs]),
        "best fixed operator": base,
        **{name: np.array([chosen(of, pair) for pair in pairs]) for name, of in predicted.items()},
        "all evaluated (search split)": np.array([by_search(pair) for pair in pairs]),
        "oracle": oracle,
    }
    rows = []
    for name, values in got.items():
        regret = bootstrap(test.experts, pairs, lambda w, v=values: float(np.average(oracle - v, weights=w)))
        of_fixed = bootstrap(
            test.experts, pairs, lambda w, v=values: float(((v - base) * w).sum() / ((oracle - base) * w).sum())
        )
        of_expert = float(
            (values - best_expert).sum() / (oracle - best_expert).sum()
        )  # of so small a gap that it has no interval
        of_tasks = float((values - lower).sum() / (upper - lower).sum())
        rows.append([name, float(values.mean()), regret, of_fixed, of_expert, of_tasks])
    print(
        "Operator and order chosen for each pair of experts: mean test score of the tasks; regret against the oracle; share of the"
    )
    print(
        "gap closed between the best fixed operator and the oracle, between the better expert and the oracle, and, summed over"
    )
    print("tasks, between the worse and the better of the two on each task\n")
    table_(["chosen by", "score", "regret", "of fixed to oracle", "of expert to oracle", "of worse to better"], rows)
    differences = []
    for name in predicted:
        for other in ("best fixed operator", "main effects", "own scores"):
            if name != other and other in got:
                differences.append(
                    [
                        name,
                        other,
                        bootstrap(
                            test.experts,
                            pairs,
                            lambda w, a=got[name], b=got[other]: float(np.average(a - b, weights=w)),
                        ),
                    ]
                )
    table_(["chosen by", "against", "gain in score"], differences)


def best_pairs(predicted: dict[str, dict], test: Scores) -> None:
    """Print what the best merge with each expert scores, chosen among all its pairs, operators and orders."""
    rows = []
    for name, of in predicted.items():
        regrets, ranks = [], []
        for expert in test.experts:
            merges = [merge for merge in each_merge(test.operators, test.experts) if expert in merge[1:]]
            truth = np.array([test.mean(*merge) for merge in merges])
            guess = np.array([np.mean([of[*merge, task].score for task in test.tasks]) for merge in merges])
            regrets.append(truth.max() - truth[guess.argmax()])
            ranks.append(spearman(guess, truth))
        rows.append([name, float(np.mean(regrets)), float(np.max(regrets)), float(np.mean(ranks)), len(merges)])
    print("Partner, operator and order chosen for each expert\n")
    table_(["chosen by", "mean regret", "largest", "rank correlation over all its merges", "merges"], rows)


def coverage(predicted: dict[str, dict], search: Scores, test: Scores) -> None:
    rows = []
    for name, of in predicted.items():
        inside = [[each.low <= scores.of[key] <= each.high for key, each in of.items()] for scores in (search, test)]
        widths = [each.high - each.low for each in of.values()]
        rows.append([name, *(float(np.mean(each)) for each in inside), float(np.mean(widths)), len(widths)])
    print("Intervals that are to hold 90 %\n")
    table_(["", "hold of search scores", "of test scores", "mean width", "merges and tasks"], rows)


def chosen_models(table: FeatureTable, search: Scores) -> None:
    predictor = learned(table, search.observations, search.operators, "all")
    rows = []
    for unseen in (0, 1, 2):
        for operator in search.operators:
            choice = predictor.chosen(operator.name, unseen)
            rows.append(
                [
                    unseen,
                    operator.name,
                    choice.setting.model.name,
                    f"{choice.setting.penalty:g}",
                    *choice.errors.values(),
                ]
            )
    print(
        "Root mean square error on held-out merges of the search split, by how many experts of a merge are unseen, and the choice\n"
    )
    table_(["unseen", "operator", "chosen", "penalty", *choice.errors], rows)


def single_features(table: FeatureTable, test: Scores) -> None:
    found = correlations(table, test.observations, test.operators)
    names = list(dict.fromkeys(each.feature for each in found))
    rows = []
    for name in names:
        these = [each for each in found if each.feature == name]
        by_score, by_gain = np.array([each.score for each in these]), np.array([each.gain for each in these])
        if not np.isnan(by_score).all():
            rows.append(
                [
                    name,
                    *(float(f(each)) for each in (by_score, by_gain) for f in (np.nanmean, np.nanmin, np.nanmax)),
                    len(these),
                ]
            )
    rows.sort(key=lambda row: -abs(row[1]))
    print(
        "Each feature by itself: Spearman's rank correlation with the score and with the gain over the mean of both experts\n"
    )
    table_(["feature", "score: mean", "least", "most", "gain: mean", "least", "most", "operators and tasks"], rows)
    signals = untrained(table)
    rhos = [
        spearman(
            [signals[first, second, task] for _, first, second in merges], [test.of[*merge, task] for merge in merges]
        )
        for operator in test.operators
        for merges in [list(each_merge([operator], test.experts))]
        for task in test.tasks
    ]
    print(f"Untrained signal: mean {np.mean(rhos):.2f}, {min(rhos):.2f} to {max(rhos):.2f} over operators and tasks\n")


def chains(table: FeatureTable, search: Scores, test: Scores) -> None:
    """Print how well chains of three are predicted, by the composition and by simpler readings."""
    asked = list(test.chains)
    if not asked:
        print("No chains of three in the table.\n")
        return
    truth = [test.chains[each] for each in asked]
    guesses: dict[str, list[float]] = {}
    insides = []
    for variant in VARIANTS:
        predictor = learned(table, search.observations, search.operators, variant)
        told = predictor.chains(asked)
        guesses[f"composition, {variant}"] = [each.score for each in told]
        insides.append(
            [
                variant,
                float(np.mean([a.low <= b <= a.high for a, b in zip(told, truth, strict=True)])),
                float(np.mean([a.high - a.low for a in told])),
            ]
        )
        pairs = [
            (((ops[step],), (experts[one], experts[step + 1]), task))
            for ops, experts, task in asked
            for step in (0, 1)
            for one in range(step + 1)
        ]
        scores = np.array([each.score for each in predictor.chains(pairs)]).reshape(-1, 3)
        guesses[f"mean of pairs, {variant}"] = scores.mean(axis=1).tolist()
    signals = untrained(table)
    guesses["untrained signal"] = [chain_signal(signals, experts, task) for _, experts, task in asked]
    guesses["mean of own scores"] = [
        float(np.mean([search.own[name, task] for name in experts])) for _, experts, task in asked
    ]
    subsets = list(dict.fromkeys(frozenset(experts) for _, experts, _ in asked))
    rows = []
    for name, guess in guesses.items():
        rhos = []
        for task in test.tasks:
            places = [i for i, each in enumerate(asked) if each[2] == task]
            rhos.append(spearman([guess[i] for i in places], [truth[i] for i in places]))
        regrets, lift, within = [], [], []
        for subset in subsets:
            which = list(dict.fromkeys(each[:2] for each in asked if frozenset(each[1]) == subset))
            real = np.array([np.mean([test.chains[(*chain, task)] for task in test.tasks]) for chain in which])
            said = np.array([np.mean([guess[asked.index((*chain, task))] for task in test.tasks]) for chain in which])
            regrets.append(real.max() - real[said.argmax()])
            lift.append(real[said.argmax()] - real.mean())
            within.append(spearman(said, real))
        error = float(np.sqrt(np.mean((np.array(guess) - truth) ** 2)))
        rows.append(
            [
                name,
                " / ".join(f"{rho:.2f}" for rho in rhos),
                error,
                float(np.nanmean(within)),
                float(np.mean(regrets)),
                float(np.mean(lift)),
            ]
        )
    print(
        f"{len(asked) // len(test.tasks)} chains of three, {len(subsets)} subsets; within a subset order and operators are chosen\n"
    )
    table_(
        ["predicted by", "rank correlation by task", "error", "within subsets", "regret", "gain over a random one"],
        rows,
    )
    table_(["intervals of compositions", "hold", "width"], insides)


def other_architecture(table: FeatureTable, search: Scores, others: FeatureTable, there: Scores, truth: Scores) -> None:
    """Print how well merges of another architecture are predicted by what was learned of the first."""
    merges = list(each_merge(truth.operators, truth.experts))
    keys = [(*merge, task) for merge in merges for task in truth.tasks]
    asked = [((merge[0],), merge[1:3], merge[3]) for merge in keys]
    predicted = {}
    for variant in VARIANTS:
        predictor = learned(table, search.observations, truth.operators, variant)
        for aligned in (False, True):
            on = predictor.on(others, there.own if VARIANTS[variant][1] else None, aligned=aligned)
            told = dict(zip(keys, on.chains(asked), strict=True))
            for operator, first, second, task in keys:
                told.setdefault((operator, second, first, task), told[operator, first, second, task])
            predicted[f"{variant}{', aligned' * aligned}"] = told
    predicted = {
        name: of for name, of in predicted.items() if name not in ("main effects, aligned", "own scores, aligned")
    }
    rank_correlations(predicted, truth)
    choices(predicted, there, truth)
    coverage(predicted, there, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--other-scores", type=Path)
    parser.add_argument("--other-features", type=Path)
    parser.add_argument("--only", choices=PARTS, help="one part of it, so that several run side by side")
    options = parser.parse_args()
    table, search, test = read_csv(options.features), Scores(options.scores, "search"), Scores(options.scores, "test")
    parts = PARTS if options.only is None else (options.only,)
    if "features" in parts:
        print("## The features\n")
        single_features(table, test)
        print("## What is chosen\n")
        chosen_models(table, search)
    for part, unseen in (("pairs", 0), ("experts", 1)):
        if part in parts:
            print(f"## Left out: {part}\n")
            predicted = {variant: held_out(table, search, unseen, variant) for variant in VARIANTS}
            rank_correlations(predicted, test)
            choices(predicted, search, test)
            if unseen:
                best_pairs(predicted, test)
            coverage(predicted, search, test)
    if "chains" in parts:
        print("## Chains of three\n")
        chains(table, search, test)
    if "other" in parts and options.other_scores is not None:
        print("## Another architecture, without learning anew\n")
        others = read_csv(options.other_features)
        other_architecture(
            table, search, others, Scores(options.other_scores, "search"), Scores(options.other_scores, "test")
        )


if __name__ == "__main__":
    main()
