"""What the command line shows of merges that were not made yet: tables, the JSON document, what it takes to learn."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from math import comb
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from sae_moo.cli.display import bare_table, finite, say, scores_json, with_error
from sae_moo.cli.frame import SET
from sae_moo.config.document import Config
from sae_moo.explore.words import count
from sae_moo.jobs.predict import Forecast, Measured
from sae_moo.objectives.scores import Score
from sae_moo.prediction.folds import FEWEST_PAIRS
from sae_moo.prediction.predictor import Prediction
from sae_moo.prediction.quality import mean_of
from sae_moo.prediction.ranking import Chain, number_of
from sae_moo.searchers.algorithms import PAIRS
from sae_moo.searchers.pairs import CHAIN
from sae_moo.searchers.schedule import ADAPTIVE

REASONS = 3
"""How many reasons a table has room for."""


def forecast_table(forecast: Forecast, chains: Sequence[Chain]) -> Table:
    """Return a table of merges in the order of what they promise.

    Args:
        forecast: the ranking.
        chains: which of its merges, the first ones.
    """
    experts = count(len(forecast.bench.pool.names) - 1, "expert")
    by = "predicted accuracy, search split" if forecast.trained else "untrained signals: no score is predicted"
    table = bare_table(f"merges of {experts} by {by}")
    interval = f"{forecast.config.predict.confidence:.0%} interval"
    measured = {chain: forecast.measured[chain] for chain in chains if chain in forecast.measured}
    tested = any(each.test is not None for each in measured.values())
    promised = ("predicted", interval) if forecast.trained else ("signal",)
    columns = ("rank", "operators", "experts", *promised, *["measured"] * bool(measured), *["test"] * tested, "why")
    for name in columns:
        left = name in ("operators", "experts", "why")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "why")
    for number, chain in enumerate(chains, 1):
        promise = forecast.promise(chain)
        cells = [str(number), CHAIN.join(chain.operators), ", ".join(chain.experts)]
        if isinstance(promise, Prediction):
            cells += [f"{promise.score:.3f}", f"{promise.low:.3f} to {promise.high:.3f}"]
            why = ", ".join(f"{amount:+.3f} {name}" for name, amount in promise.reasons[:REASONS])
        else:
            cells.append(f"{promise.score:.2f}")
            why = ", ".join(f"{name} {amount:.2f}" for name, amount in forecast.signs(chain).items())
        found = measured.get(chain)
        if measured:
            cells.append("" if found is None else _measured_text(found))
        if tested:
            cells.append("" if found is None or found.test is None else with_error(found.test.score, found.test.stderr))
        table.add_row(*cells, why)
    return table


def show_forecast(console: Console, forecast: Forecast, chains: Sequence[Chain], config: str) -> None:
    """Print a ranking, how it came about, and what it would take to learn where nothing was."""
    console.print(forecast_table(forecast, chains))
    console.print()
    if forecast.predictor is not None:
        console.print(quality_table(forecast))
        console.print()
    for line in told(forecast):
        say(console, line)
    if not forecast.trained:
        commands, evaluations = needed(forecast, config)
        few = (
            ""
            if len(commands) > 1
            else f", of {FEWEST_PAIRS} pairs of experts at least; so many come only from runs with other experts"
        )
        say(
            console,
            "Nothing was learned: these signals order merges, as far as they do, and are no scores. They tell no "
            f"operators apart; {next(iter(forecast.operators))}, the first of predict.operators, stands for all. To "
            f"predict scores takes merges of two that were evaluated{few}"
            f"{'. What yours score, a' if few else '; a'} study of all of them {'tells' if few else 'takes'}, "
            f"in {count(evaluations, 'evaluation')}:",
        )
        console.print("\n".join(f"  {command}" for command in commands), soft_wrap=True)


def quality_table(forecast: Forecast) -> Table:
    """Return a table of how well each operator is predicted, beside the main effects."""
    out = ("pairs", "pairs of which one expert is new", "pairs of two new experts")[forecast.unseen]
    table = bare_table(f"chosen by cross-validation over held-out {out}: rank correlation of prediction and score")
    for name in ("operator", "pairs", "predictor", "correlation", "main effects alone"):
        table.add_column(name, justify="left" if name in ("operator", "predictor") else "right")
    for each in forecast.quality():
        told = ("" if number is None else f"{number:.2f}" for number in (each.correlation, each.baseline))
        table.add_row(each.operator, str(each.pairs), each.model, *told)
    return table


def told(forecast: Forecast) -> list[str]:
    """Return how a ranking came about, a sentence each."""
    ranking = forecast.ranking
    lines = []
    for size, judged in ranking.judged.items():
        if judged < ranking.possible[size]:
            lines.append(
                f"Of {ranking.possible[size]:,} merges of {size} experts, {judged:,} were ranked: those that go on "
                f"from the most promising merges of {size - 1} (predict.most: {forecast.config.predict.most})."
            )
    ranked = sum(ranking.judged.values())
    lines.insert(0, f"Ranked: {count(ranked, 'merge')} of {sum(ranking.possible.values()):,}.")
    lines += [f"Learned from {lesson}." for lesson in forecast.lessons]
    if forecast.predictor is not None:
        training = forecast.predictor.training
        merges = [each for each in training.observations if each.operators]
        lines.append(
            f"Observed: {count(len(merges), 'score')} of merges on {count(len(training.table.tasks), 'task')}, "
            f"{count(len(training.experts), 'expert')}."
        )
        most = [f"{each.feature} {each.score:+.2f}" for each in forecast.tendencies()[:REASONS]]
        lines.append(f"Features that go with the scores most, by themselves: {', '.join(most)} (rank correlation).")
        if any(len(chain.experts) > 2 for chain in forecast.first()):
            lines.append(
                "Merges of more than two are predicted by composition, and their intervals are not calibrated: "
                "--evaluate-top tells."
            )
    lines += [f"Not ranked, since too little was learned of it: {name}." for name in forecast.left_out]
    return lines


def needed(forecast: Forecast, config: str) -> tuple[list[str], int]:
    """Return the command that evaluates every merge of two and the one that learns of them, and how many they are.

    Of fewer experts than make the pairs that learning takes, the first command stands alone: it tells all by itself.
    """
    operators = forecast.config.predict.known
    symmetric = sum(operator.symmetric for operator in operators)
    experts = len(forecast.bench.pool.names) - 1
    evaluations = number_of(experts, len(operators), 2, symmetric) + experts + 1
    pairs: dict[str, Any] = {"levels": []}
    section = forecast.config.predict
    if "operators" in section.model_fields_set:
        pairs["operators"] = [each.model_dump(mode="json", exclude_none=True) for each in section.operators]
    changes = {
        "study.name": study_of_pairs(forecast.config),
        "search": {"algorithm": PAIRS, "evaluations": evaluations, PAIRS: pairs},
        **_unread(forecast.config),
    }
    given = [f"{SET} {shlex.quote(f'{key}={_flow(value)}')}" for key, value in changes.items()]
    commands = [f"sae-moo search {shlex.quote(config)} {' '.join(given)}"]
    if comb(experts, 2) >= FEWEST_PAIRS:
        commands.append(f"sae-moo predict {shlex.quote(config)} --learn {study_of_pairs(forecast.config)}")
    return commands, evaluations


def study_of_pairs(config: Config) -> str:
    """Return what the study of all pairs is called."""
    return f"{config.study.name[:94]}-pairs"


def forecast_json(forecast: Forecast, chains: Sequence[Chain], config: str) -> dict[str, Any]:
    """Return the JSON shape of a ranking."""
    document: dict[str, Any] = {
        "study": forecast.config.study.name,
        "trained": forecast.trained,
        "split": "search",
        "tasks": dict(forecast.shares),
        "predictor": _predictor_json(forecast),
        "learned": [
            {
                "run": each.run.name,
                "trials": each.trials,
                "pairs": each.pairs,
                "longer": each.longer,
                "stopped": each.stopped,
            }
            for each in forecast.lessons
        ],
        "ranked": {
            str(size): {"ranked": judged, "possible": forecast.ranking.possible[size]}
            for size, judged in forecast.ranking.judged.items()
        },
        "left_out": list(forecast.left_out),
        "merges": [_merge_json(forecast, number, chain) for number, chain in enumerate(chains, 1)],
        "needs": None,
    }
    if not forecast.trained:
        commands, evaluations = needed(forecast, config)
        document["needs"] = {"evaluations": evaluations, "commands": commands}
    return document


def _predictor_json(forecast: Forecast) -> dict[str, Any] | None:
    if forecast.predictor is None:
        return None
    training, found = forecast.predictor.training, forecast.quality()
    return {
        "unseen": forecast.unseen,
        "correlation": mean_of([each.correlation for each in found]),
        "baseline": mean_of([each.baseline for each in found]),
        "observations": sum(bool(each.operators) for each in training.observations),
        "experts": len(training.experts),
        "confidence": forecast.predictor.confidence,
        "operators": {
            each.operator: {
                "model": each.model,
                "pairs": each.pairs,
                "correlation": each.correlation,
                "baseline": each.baseline,
                "error": each.error,
                "baseline_error": each.baseline_error,
            }
            for each in found
        },
        "features": {
            each.feature: {"score": finite(each.score), "gain": finite(each.gain)} for each in forecast.tendencies()
        },
    }


def _merge_json(forecast: Forecast, number: int, chain: Chain) -> dict[str, Any]:
    promise, found = forecast.promise(chain), forecast.measured.get(chain)
    predicted = promise if isinstance(promise, Prediction) else None
    return {
        "rank": number,
        "operators": list(chain.operators),
        "experts": list(chain.experts),
        "predicted": None if predicted is None else predicted.score,
        "low": None if predicted is None else predicted.low,
        "high": None if predicted is None else predicted.high,
        "signal": promise.score if predicted is None else None,
        "features": {} if predicted is None else dict(predicted.reasons),
        "signals": forecast.signs(chain) if predicted is None else {},
        "model": None if predicted is None else predicted.model,
        "unseen": [] if predicted is None else list(predicted.unseen),
        "measured": None if found is None else _measured_json(found),
        "digest": forecast.recipe(chain).digest(forecast.bench.pool),
    }


def _measured_json(found: Measured) -> dict[str, Any]:
    return {
        "run": found.run,
        "trial": found.trial,
        **_score_json(found.accuracy),
        "tasks": scores_json(found.tasks),
        "test": None if found.test is None else _score_json(found.test),
        "reason": found.reason,
    }


def _score_json(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"score": None, "stderr": None, "instances": None}
    return {"score": score.score, "stderr": finite(score.stderr), "instances": score.instances}


def _measured_text(found: Measured) -> str:
    return "failed" if found.accuracy is None else with_error(found.accuracy.score, found.accuracy.stderr)


def _unread(config: Config) -> dict[str, Any]:
    """Return what must be changed in a configuration for what evaluates all merges of two to take it."""
    changes: dict[str, Any] = {}
    if config.space.kind is not None or config.space.sparsity is not None:
        changes["space"] = None
    if config.annealing.schedule == ADAPTIVE:
        changes["annealing"] = None
    for key in ("racing", "screening"):
        if getattr(config.evaluation, key) is not None:
            changes[f"evaluation.{key}"] = None
    return changes


def _flow(value: Any) -> str:
    """Return a value as YAML in a line."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)).strip()
