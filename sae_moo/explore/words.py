"""Recipes, trials and studies in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_moo.explore.decide.significance import Paired, paired
from sae_moo.explore.timeline import HERE, PHASES, Timeline
from sae_moo.explore.view import Marked, View, by_trial, sparsity
from sae_moo.objectives import Constraint, Objective, Screened, Sparsity, Speed, TaskMean
from sae_moo.recipe import BASE, BLOCKS, STORED, Cast, Expert, Merge, Prune, Recipe, Repair, children, walk
from sae_moo.recipe.mixing import mixing_weights
from sae_moo.recipe.rows import Rows
from sae_moo.study.record import Ended, ended, inherited, own, tokens

MOST_STEPS = 12  # of a recipe in words; what only experts and trials are made of is seldom longer
MOST_NAMES = 4
SPACES = {"lineage": " over lineages", "coefficients": " over coefficients", None: ""}
WITHIN = {
    "tensor": "within each tensor",
    "group": "within each group",
    "global": "over all prunable weights together",
    "row": "within each row",
    "neurons": "by whole neurons",
    "heads": "by whole attention heads",
    "moe-experts": "by whole experts of the mixtures",
    "blocks": "by whole blocks",
}


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Return names as a list in words, the last ones only counted beyond `most`."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else "nothing"


def limit_words(constraints: Sequence[Constraint]) -> list[str]:
    """Return each limit, a clause."""
    return [f"{constraint.objective.name} {limit}" for constraint in constraints for limit in constraint.words]


def objective_words(objective: Objective) -> str:
    """Return what an objective is, with its unit: an axis title."""
    if isinstance(objective, Speed):
        return f"{objective.name} (modelled tokens per second, the base's are 1)"
    if not isinstance(objective, TaskMean):
        return f"{objective.name} (fraction of zeros among prunable weights)"
    if objective.tasks == (objective.name,):
        return f"{objective.name} (mean score, 0 to 1)"
    return f"{objective.name} (mean score of {count(len(objective.tasks), 'task')}, 0 to 1)"


def duration(seconds: float) -> str:
    """Return a span of time in the unit that suits it."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds / size < limit:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return _days(seconds)


def clock_time(seconds: float | None) -> str:
    """Return a span of time as a clock shows it; what is not known yet as dashes."""
    if seconds is None:
        return "--:--"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return _days(whole)
    hours = f"{whole // 3600}:{whole // 60 % 60:02d}" if whole >= 3600 else f"{whole // 60}"
    return f"{hours}:{whole % 60:02d}"


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days"


def count(number: int, what: str) -> str:
    """Return a number of things; the plural takes an s."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def recipe_words(recipe: Recipe, known: Mapping[Recipe, int]) -> list[str]:
    """Return how a candidate is made, a line each step, the last step last.

    Args:
        recipe: the candidate.
        known: recipe -> trial number; what the candidate is made of is told by the number where there is one.
    """
    inner = dict.fromkeys(node for child in children(recipe) for node in walk(child, stop=known))
    merges = sum(isinstance(node, Merge) for node in (*inner, recipe))
    names: dict[Recipe, str] = {}
    lines: list[str] = []
    for node in (*inner, recipe):
        if isinstance(node, Expert):
            names[node] = node.name
            continue
        if isinstance(node, Cast) and isinstance(node.input, Expert):
            names[node] = node.input.name  # says more than the trial's number
            continue
        if node in known and node != recipe:
            names[node] = f"trial {known[node]}"
            continue
        inputs = [names[child] for child in children(node)]
        match node:
            case Merge():
                made = sum(isinstance(each, Merge) and each not in known for each in names)
                called = f"merge {made + 1}" if merges > 1 else "the merge"
                lines.append(f"{called}: {_merge_words(node, inputs)}")
                names[node] = called
            case Prune():
                lines.append(f"{inputs[0]} pruned {_prune_words(node)}")
                names[node] = inputs[0].removesuffix(", pruned") + ", pruned"
            case Repair():
                lines.append(f"{inputs[0]} repaired: what is left is moved to make up for the zeros")
                names[node] = f"{inputs[0]} and repaired"
            case Cast():
                names[node] = inputs[0]
    if isinstance(recipe, Cast):
        rounded = "every tensor in its own dtype" if recipe.dtype == STORED else f"rounded to {recipe.dtype}"
        lines.append(rounded if lines else f"{names[recipe]}, {rounded}")
    if len(lines) > MOST_STEPS:
        return [f"({len(lines) - MOST_STEPS} earlier steps)", *lines[-MOST_STEPS:]]
    return lines


def mix_words(recipe: Recipe, view: View) -> str:
    """Return how much of each expert is in a candidate, to first order, the largest share first."""
    shares = mixing_weights(recipe, view.experts, len(view.groups), view.mixing).mean(axis=0)
    parts = sorted(zip(shares, view.experts, strict=True), key=lambda part: -abs(part[0]))
    return listed([f"{share:.2f} {name}" for share, name in parts if abs(share) >= 0.005], 8)


def names_words(names: Sequence[Marked]) -> str:
    """Return all names of a trial, as a heading."""
    said = "; ".join(each.name for each in names)
    return said[:1].upper() + said[1:]


def value_words(record: Ended, name: str) -> str:
    """Return a trial's value of an objective with its standard error, where there is one."""
    error = record.stderr.get(name, math.nan)
    return f"{record.values[name]:.3f}" + (f" ± {error:.3f}" if error > 0 else "")


def difference(view: View, a: Ended, b: Ended) -> Paired | None:
    """Return the accuracy of a trial minus another's, over instances; None where the two were asked other instances."""
    x, y = a.evaluation.scores, b.evaluation.scores
    if not view.shares or any(len(x.get(task, ())) != len(y.get(task, ())) for task in view.shares):
        return None
    return paired(x, y, list(view.shares), list(view.shares.values()))


def difference_words(view: View, record: Ended, other: Marked) -> str:
    """Return how a trial's accuracy compares with a named one's, a clause; `significance.HOW_TESTED` explains it."""
    if record.number == other.record.number:
        return f"it is {other.why}"
    mean, found = view.accuracy(record) - view.accuracy(other.record), difference(view, record, other.record)
    how = f"{abs(mean):.3f} {'more' if mean > 0 else 'less'} accurate than" if abs(mean) >= 5e-4 else "as accurate as"
    if found is None:
        return f"{how} {other.name}"
    return f"{how} {other.name}{',' if found.equal else ''} {found.verdict}"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a summary: a heading, a paragraph, and points below it."""

    heading: str
    text: str
    points: tuple[str, ...] = ()


def summary(view: View) -> list[Section]:
    """Return what was searched, what was found, how sure that is, and what it cost."""
    return [
        Section("What was searched", _searched(view)),
        _found(view),
        Section("How sure this is", _sure(view)),
        Section("What it cost", _cost(view)),
    ]


def _searched(view: View) -> str:
    experts = [name for name in view.experts if name != BASE]
    wanted = listed([objective_words(objective) for objective in view.objectives], 8)
    limits = limit_words(view.constraints)
    return (
        f"Merges of {count(len(experts), 'expert')} ({listed(experts, 10)}) of one base, for {wanted}; more is better "
        f"in each. Tasks: {listed(view.tasks, 10)}. Limits: {listed(limits, 8) if limits else 'none'}. "
        f"Algorithm: {view.algorithm}{SPACES[view.space]}.{_left_alone(view)}"
    )


def _left_alone(view: View) -> str:
    if not view.left_alone:
        return ""
    verb = "is" if len(view.left_alone) == 1 else "are"
    return f" Sparsity is the text model's: {listed(view.left_alone, 8)} {verb} merged, and neither pruned nor counted."


def _found(view: View) -> Section:
    heading = "What was found"
    if not view.front:
        return Section(heading, f"Nothing feasible so far: {view.nothing}.")
    points = tuple(
        f"{names_words(names)}: trial {record.number}, "
        + ", ".join(f"{o.name} {value_words(record, o.name)}" for o in view.objectives)
        for record, names in by_trial(view.picks)
    )
    return Section(heading, f"A front of {count(len(view.front), 'trial')} that no other trial beats. On it:", points)


def _sure(view: View) -> str:
    if not view.picks:
        return "There is nothing to be sure of yet."
    record = view.picks[0].record
    asked = sum(len(row) for row in record.evaluation.scores.values())
    error = view.accuracy_error(record)
    tasks = count(len(record.evaluation.scores), "task")
    spread = "" if math.isnan(error) else f" An accuracy has a standard error of about {error:.3f}."
    means = f" {view.meaning[0].upper()}{view.meaning[1:]}." if view.meaning else ""
    parts = [f"Scores are means over {count(asked, 'instance')} of {tasks}, the search split.{means}{spread}"]
    parts.append(
        f"The front was chosen from {count(len(view.done), 'trial')} by these same instances, so its scores are "
        "somewhat too good; a model's score on the test split, which the search never sees, is told by pick --test and "
        "by export --verify."
    )
    grown = view.hypervolumes
    last = len(grown) - max(1, len(grown) // 4)
    if len(grown) >= 8 and grown[-1] > 0:
        before = grown[last - 1]
        gain = grown[-1] / before - 1 if before > 0 else math.inf
        more = "it was still growing" if gain > 0.01 else "more evaluations may add little"
        by = f"grew by {gain:.1%}" if before > 0 else "grew from nothing"
        parts.append(f"In the last quarter of the evaluations the hypervolume {by}: {more}.")
    return " ".join(parts)


def _cost(view: View) -> str:
    earlier, made = inherited(view.records), ended(own(view.records))
    fresh = [record.evaluation for record in made if record.repeats is None]
    merging, scoring = sum(e.seconds_merge for e in fresh), sum(e.seconds_score for e in fresh)
    screened = [each.screened for each in fresh if each.screened is not None]
    read = tokens(view.records)
    states = Counter(record.state for record in own(view.records))
    asides = [
        (states["failed"], "failed"),
        (states["stopped"], "stopped early by racing"),
        (states["running"], "not ended"),
        (sum(r.repeats is not None for r in made), "the same weights as an earlier one, not scored again"),
        (sum(bool(r.values) and not r.feasible for r in made), "beyond a limit"),
        (len(earlier), "taken over from other studies beside them"),
    ]
    budget = f" of {view.budget:,}" if len(made) < view.budget else ""
    told = "; ".join(f"{n:,} {what}" for n, what in asides if n)
    return (
        f"{len(made):,}{budget} evaluations{f' ({told})' if told else ''}, "
        f"{duration(merging)} of merging and {duration(scoring)} of scoring"
        f"{f', {read:,} forward tokens' if read else ''}.{_screened(screened, read)}{_crewed(view.timeline)}"
    )


def busy_words(found: Timeline) -> str:
    """Return how many workers there were and how busy they were, a clause."""
    single = len(found.workers) == 1
    who = found.workers[0] if single and found.workers[0] == HERE else count(len(found.workers), "worker")
    share, parts = found.share(), {phase: found.share((phase,)) for phase in PHASES}
    each = ", ".join(f"{part:.0%} {phase}" for phase, part in parts.items() if part)
    sessions = f" in {count(len(found.sessions), 'session')}" if len(found.sessions) > 1 else ""
    lost = f"; {count(found.losses, 'worker')} lost over trials" if found.losses else ""
    return f"{who}, busy {share:.0%} of {duration(found.seconds)}{sessions}{f' ({each})' if each else ''}{lost}"


def _crewed(found: Timeline) -> str:
    """Return who evaluated, a sentence with a blank before it; nothing where the search did so itself."""
    if set(found.workers) <= {HERE} and not found.losses:
        return ""
    lost = ""
    if found.losses:
        were = "was" if found.losses == 1 else "were"
        lost = f"; {count(found.losses, 'worker')} {were} lost over trials, which others took over or which failed"
    busy = f"{found.share():.0%} of {duration(found.seconds)}"
    return f" Evaluated by {count(len(found.workers), 'worker')}, busy {busy}{lost}."


def _screened(screened: Sequence[Screened], everything: int | None) -> str:
    """Return what screening took, a sentence with a blank before it; nothing where nothing was screened."""
    if not screened:
        return ""
    read, candidates = sum(each.tokens for each in screened), sum(each.candidates for each in screened)
    share = f", {read / everything:.0%} of all" if everything else ""
    return (
        f" Screening chose {count(len(screened), 'candidate')} among {candidates:,} allocations: {read:,} forward "
        f"tokens{share}, and {duration(sum(each.seconds for each in screened))}."
    )


def trial_words(view: View, record: Ended) -> list[str]:
    """Return facts of a trial with a result, a sentence each."""
    values = ", ".join(f"{o.name} {value_words(record, o.name)}" for o in view.objectives)
    made = f", from {listed([f'trial {n}' for n in record.parents], 6)}" if record.parents else ""
    told = any(isinstance(objective, Sparsity) for objective in view.objectives)
    counted = "" if told else f"; realised sparsity {sparsity(record):.3f}"
    speed = record.evaluation.speed
    if speed is not None and not any(isinstance(objective, Speed) for objective in view.objectives):
        counted += f"; modelled speed {speed:.3f}"
    lines = [f"Values: {values}{counted}.", f"Made by {record.operator or 'hand'}{made}."]
    lines.append(f"Effective mix of weights, to first order: {mix_words(record.recipe, view)}.")
    return lines


def _merge_words(node: Merge, inputs: Sequence[str]) -> str:
    rows = np.asarray(Rows.of(node.weights).rows, dtype=float)
    low, high, mean = rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0)
    parts = [
        f"{name} (weight {m:.2f})" if h - lo < 0.005 else f"{name} (weight {lo:.2f} to {h:.2f}, mean {m:.2f})"
        for name, lo, h, m in zip(inputs, low, high, mean, strict=True)
    ]
    settings = [f"{key} {_setting(value)}" for key, value in node.params]
    return f"{node.method.replace('_', ' ')} of {listed(parts, 10)}" + (f"; {listed(settings, 8)}" if settings else "")


def _prune_words(node: Prune) -> str:
    if node.scope == BLOCKS and node.units is not None:
        gone = [i for i, row in enumerate(node.units) if row]
        return f"without {count(len(gone), 'block')}" + (f": {listed([str(i) for i in gone], 12)}" if gone else "")
    asked = np.asarray(Rows.of_places(node.sparsity).numbers, dtype=float)
    some = asked[asked > 0]
    how = f"by {node.criterion} " + WITHIN.get(node.scope, f"in the pattern {node.scope}")
    if not some.size:
        return f"{how}: nothing asked for"
    share = (
        f"{some[0]:.2f}" if np.ptp(some) < 0.005 else f"{some.min():.2f} to {some.max():.2f}, mean {some.mean():.2f}"
    )
    where = "" if len(asked) == 1 else f" in {len(some)} of {count(len(asked), 'group')}"
    return f"{how}, sparsity {share}{where}" + (", what is left rescaled to its norm" if node.rescale else "")


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        numbers = Rows.of(value).numbers
        least, most = min(numbers), max(numbers)
        return f"{least:g} to {most:g}" if most > least else f"{least:g}"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
