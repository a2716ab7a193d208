"""What optuna-dashboard tells of a study in words: a note for the study, and one for each trial worth it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from sae_moo.explore import words
from sae_moo.explore.view import View, by_trial
from sae_moo.storage import TrialRecord

MOST_NOTES = 300  # trials of the front that have one; the dashboard sends every note with every page
READING = """## How to read these pages

* **Pareto front** (first page): the trials over any two objectives; pointing at one tells its number.
* **Trial (Selection)**: drag along the axes to keep a range of objectives, parameters and numbers of trials.
* **Trials**: each of the front, and the base, the experts and their average, has a note with its recipe in words.
* `weight NAME` is how much of an expert is in a trial, to first order; `sparsity block.N` what its last pruning asked
  of a block; `annealed ratio` what the search pruned it at. Objectives are realised, on the search split.
* These pages can edit and delete. A study that lacks a trial cannot be resumed.
"""


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes in Markdown.

    Args:
        study: of the study.
        trials: trial number -> its note.
    """

    study: str
    trials: Mapping[int, str] = field(default_factory=dict)


def notes_of(view: View, run: str) -> Notes:
    """Return the notes of a study as it is now.

    Args:
        view: the study.
        run: what commands call the run.
    """
    lines = [f"# {plain(view.name)}", ""]
    for section in words.summary(view):
        lines += [f"## {section.heading}", "", plain(section.text), ""]
        lines += [*(f"* {plain(point)}" for point in section.points), ""]
    lines += [READING, f"A page to keep: `sae-moo report {_code(run)} --output report.html`", ""]
    names: dict[int, str] = {}
    for record, marked in by_trial((*view.picks, *view.references)):
        names[record.number] = words.names_words(marked)
    noted = [*(view.records[number] for number in names), *view.front[:MOST_NOTES]]
    trials = {record.number: _trial_note(view, run, record, names.get(record.number)) for record in noted}
    return Notes("\n".join(lines), trials)


def _trial_note(view: View, run: str, record: TrialRecord, name: str | None) -> str:
    lines = [f"**{plain(name)}**", ""] if name else []
    lines += [*(plain(line) + "  " for line in words.trial_words(view, record)), "", "Recipe:", ""]
    steps = words.recipe_words(record.recipe, view.known)
    lines += [f"{i}. {plain(step)}" for i, step in enumerate(steps, 1)]
    command = f"sae-moo export {_code(run)} --trial {record.number} --output exported-{record.number} --verify"
    return "\n".join([*lines, "", f"`{command}`", ""])


def plain(text: str) -> str:
    """Return text as Markdown that shows it as it is (CommonMark 0.31, section 2.4)."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", text)


def _code(name: str) -> str:
    """Return a name as a shell reads it, without what would end a span of code."""
    return shlex.quote(name).replace("`", "?")
