"""What optuna-dashboard tells of a study in words: a note for the study, and one for each trial worth it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from sae_moo.explore import words
from sae_moo.explore.view import View, by_trial
from sae_moo.study.record import Ended, ended

MOST_NOTES = 500  # trials that have one; the dashboard sends every note with every page
READING = """## How to read these pages

* **History**: the trials over any two objectives, pointing at one tells its number; below, what matters to each
  objective, then our figures of the front and of its growth. Trials that break a limit are grey.
* **Analytics**: an objective against one parameter or two.
* **Trials (List)**: each with a note: its values, what made it and its recipe in words.
* **Smart Selection**: drag along the axes to keep a range of objectives, parameters and numbers of trials; the table
  below has what is left.
* `weight NAME` is how much of an expert is in a trial, to first order; `sparsity block.N` what its last pruning asked
  of a block; `annealed ratio` what the search pruned it at, where that ever changes; a learned generator has losses,
  spreads and a share; a pre-screened search has what it expected of a trial. Objectives are realised, on the search
  split.
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
    noted = {record.number: record for record, _ in by_trial((*view.picks, *view.references))}
    noted |= {record.number: record for record in (*view.front, *ended(view.records[::-1]))}
    trials = {n: _trial_note(view, run, noted[n], names.get(n)) for n in list(noted)[:MOST_NOTES]}
    return Notes("\n".join(lines), trials)


def _trial_note(view: View, run: str, record: Ended, name: str | None) -> str:
    lines = [f"**{plain(name)}**", ""] if name else []
    if record.values:
        lines += [plain(line) + "  " for line in words.trial_words(view, record)]
    else:
        lines += [f"**{record.state.capitalize()}**: {plain(record.evaluation.reason or '')}"]
    lines += ["", "Recipe:", ""]
    steps = words.recipe_words(record.recipe, view.known)
    lines += [f"{i}. {plain(step)}" for i, step in enumerate(steps, 1)]
    command = f"sae-moo export {_code(run)} --trial {record.number} --output exported-{record.number} --verify"
    return "\n".join([*lines, "", *([f"`{command}`", ""] if record.values else [])])


def plain(text: str) -> str:
    """Return text as Markdown that shows it as it is (CommonMark 0.31, section 2.4)."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", text)


def _code(name: str) -> str:
    """Return a name as a shell reads it, without what would end a span of code."""
    return shlex.quote(name).replace("`", "?")
