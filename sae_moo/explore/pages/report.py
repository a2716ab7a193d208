"""A study as one HTML page that needs no network: summary, figures, the front as a table, a section for each pick."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sae_moo.explore import words
from sae_moo.explore.decide.significance import HOW_TESTED
from sae_moo.explore.draw.learned import Panel, moves_of, panels_of
from sae_moo.explore.draw.numbers import Answers, agreement_of, ancestry_of, answers_of, blocks_of, thinned
from sae_moo.explore.draw.timeline import rows_of
from sae_moo.explore.history import generations
from sae_moo.explore.view import Marked, View, by_trial, sparsity
from sae_moo.files.whole import check_creatable, whole_file
from sae_moo.objectives import SPEED, Sparsity, Speed
from sae_moo.searchers.ratio import RATIO
from sae_moo.study.record import Ended, weight_of

if TYPE_CHECKING:
    from sae_moo.explore.draw.page.plots import Figure

POLICY = (  # nothing is fetched; plotly.js compiles the shaders of its 3-D and parallel figures
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:"
)

LEARNING = (
    "How the networks stand that make offspring. Where the spread of what they make is far below the population's, "
    "they have collapsed: all that they are given becomes nearly the same."
)


def write_report(view: View, output: Path, run: str) -> int:
    """Write a study's report as one HTML file, whole or not at all.

    Args:
        view: the study.
        output: the file to make; it must not exist yet.
        run: what commands call the run.

    Returns:
        The file's size in bytes; some 5 million of them are plotly.js.

    Raises:
        InputError: if the file exists or cannot be made.
    """
    check_creatable(output)
    text = page(view, run)
    with whole_file(output, replace=True) as partial:
        partial.write_text(text, encoding="utf-8")
        return partial.stat().st_size


def page(view: View, run: str) -> str:
    """Return the report as the text of an HTML page; see `write_report`."""
    from sae_moo.explore.draw.page.plots import library

    own = resources.files("sae_moo.explore.pages")
    body = "\n".join(_body(view, run))
    title = escape(view.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}: accuracy against sparsity</title>
<link rel="icon" href="data:,">
<style>
{(own / "report.css").read_text("utf-8")}</style>
</head>
<body>
{body}
<script id="plotly">{library()}</script>
<script>
{(own / "report.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _body(view: View, run: str) -> Iterator[str]:
    from sae_moo.explore.draw.page import plots
    from sae_moo.explore.draw.page.front import front_figures
    from sae_moo.explore.draw.page.timeline import timeline_figure

    figures = _Figures()
    marked, answers, panels = list(by_trial(view.picks)), answers_of(view), panels_of(view)
    rows = rows_of(view.timeline)
    links = [
        ("front", "Front"),
        *([("agreement", "Agreement")] if answers is not None else []),
        ("progress", "Progress"),
        *([("workers", "Workers")] if rows is not None else []),
        *([("generator", "Generator")] if panels else []),
        *((f"trial-{r.number}", f"Trial {r.number}") for r, _ in marked),
    ]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield f"<h1>{escape(view.name)}</h1>"
    yield f'<p class="soft">Report of a search for merged models, made {now} after {len(view.records):,} trials. '
    yield "All scores are of the search split.</p>"
    yield "<nav>" + " ".join(f'<a href="#{to}">{escape(name)}</a>' for to, name in links) + "</nav>"
    for section in words.summary(view):
        yield f"<h3>{section.heading}</h3><p>{escape(section.text)}</p>"
        if section.points:
            yield "<ul>" + "".join(f"<li>{escape(point)}</li>" for point in section.points) + "</ul>"
    yield '<h2 id="front">Front</h2>'
    for figure, caption in zip(front_figures(view), _front_captions(view), strict=True):
        yield figures.place(figure, caption)
    if view.front:
        yield from _table(view)
    if answers is not None:
        yield from _chooser(view, answers, figures)
    yield '<h2 id="progress">Progress</h2>'
    yield figures.place(
        plots.hypervolume_figure(view.hypervolumes),
        "What the front dominates of all that could be reached. A curve that still rises says that more evaluations "
        "would help.",
    )
    found = generations(view.records, RATIO)
    if len(found.number) > 1:
        yield figures.place(
            plots.generation_figure(found),
            "How sparse the candidates of each generation came out, and the annealed ratio: a child is pruned to less "
            "than it, or to about as much as its parents.",
        )
    if rows is not None:
        yield '<h2 id="workers">Who was busy when</h2>'
        yield f"<p>{escape(rows.title)}.</p>"
        yield figures.place(timeline_figure(rows), rows.caption)
    if panels:
        yield from _learned(view, panels, figures)
    for record, names in marked:
        yield from _pick(view, run, record, names, figures)
    yield f"<h2>All trials</h2><pre>sae-moo trials {escape(shlex.quote(run))}</pre>"


def _learned(view: View, panels: Sequence[Panel], figures: _Figures) -> Iterator[str]:
    """Yield how a learned generator stood, and where it moved candidates."""
    from sae_moo.explore.draw.page.learned import learning_figure, moves_figure

    yield '<h2 id="generator">Generator</h2>'
    yield figures.place(learning_figure(panels), LEARNING)
    moves = moves_of(view)
    if moves is not None:
        yield figures.place(moves_figure(view, moves), moves.caption)


def _front_captions(view: View) -> list[str]:
    rest, drawn = len(view.done) - len(view.front), len(thinned(view))
    some = "" if rest <= drawn else f" Of {rest:,} other trials {drawn:,} are drawn, evenly spread over the search."
    circled = "Circled: the picks below. " if view.front else ""
    marks = f"{circled}Square: the base; diamonds: the experts; star: their uniform average.{some}"
    match len(view.objectives):
        case 1 | 2:
            return [marks]
        case 3:
            return ["Drag to turn, scroll to come nearer, rest on a point to see its trial.", marks]
        case _:
            return ["A line for each trial of the front. Drag along an axis to keep a range of it.", marks]


def _table(view: View) -> Iterator[str]:
    picked = {each.record.number for each in view.picks}
    single = [task for task in view.tasks if task not in {o.name for o in view.objectives}]
    more = {} if any(isinstance(o, Sparsity) for o in view.objectives) else {"sparsity": sparsity}
    if not any(isinstance(o, Speed) for o in view.objectives) and SPEED in view.quantities:
        more[SPEED] = lambda record: view.quantities[SPEED].value(record.evaluation)
    heads = [("trial", ""), *((o.name, "") for o in view.objectives), *((name, "") for name in [*more, *single])]
    heads += [("generation", ""), ("made by", "text"), ("mix of experts", "text")]
    yield f"<h3>The front as a table ({words.count(len(view.front), 'trial')})</h3>"
    yield '<p class="soft">Press a heading to sort by it. Values are means ± one standard error; picks are shaded.'
    yield "A click on a point of the front shows its row.</p>"
    yield '<div class="scroll" tabindex="0"><table class="sortable" id="trials"><thead><tr>'
    for name, kind in heads:
        yield f'<th scope="col" class="{kind}"><button type="button">{escape(name)}</button></th>'
    yield "</tr></thead><tbody>"
    for record in view.front:
        cells = [_number(float(record.number), str(record.number))]
        cells += [_number(record.values[o.name], words.value_words(record, o.name)) for o in view.objectives]
        cells += [_number(value, f"{value:.3f}") for value in (amount(record) for amount in more.values())]
        cells += [_number(value, f"{value:.3f}") for value in map(record.evaluation.mean, single)]
        cells.append(_number(float(record.generation), str(record.generation)))
        cells += [f'<td class="text">{escape(text)}</td>' for text in (record.operator, _mix(view, record))]
        kind = ' class="picked"' if record.number in picked else ""
        yield f'<tr id="row-{record.number}"{kind}>'
        yield f"{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _mix(view: View, record: Ended) -> str:
    """Return a trial's weights as the study's parameters have them, without walking its lineage."""
    shares = [(name, record.params.get(weight_of(name), 0.0)) for name in view.experts]
    return "  ".join(f"{name} {share:.2f}" for name, share in shares if abs(share) >= 0.005)


def _number(value: float, text: str) -> str:
    return f'<td data-value="{value:.6g}">{text}</td>'


def _pick(view: View, run: str, record: Ended, names: Sequence[Marked], figures: _Figures) -> Iterator[str]:
    from sae_moo.explore.draw.page import plots

    yield f'<h2 id="trial-{record.number}">{escape(words.names_words(names))}: trial {record.number}</h2>'
    yield f"<p>Why: {escape('; '.join(each.why for each in names))}.</p>"
    yield f"<p>{escape(' '.join(words.trial_words(view, record)))}</p>"
    if view.shares:
        compared = [words.difference_words(view, record, other) for other in view.references]
        yield "<h3>Accuracy against the base, the experts and their average</h3>" if compared else ""
        yield "<ul>" + "".join(f"<li>{escape(clause)}</li>" for clause in compared) + "</ul>" if compared else ""
        yield f'<p class="soft">{escape(HOW_TESTED)}.</p>' if compared else ""
    yield "<h3>Recipe</h3><ol>"
    for line in words.recipe_words(record.recipe, view.known):
        yield f"<li>{escape(line)}</li>"
    yield f'</ol><p class="soft">Digest <code>{escape(record.digest)}</code></p>'
    number = record.number
    command = f"sae-moo export {shlex.quote(run)} --trial {number} --output exported-{number} --verify"
    yield f"<pre>{escape(command)}</pre>"
    yield figures.place(
        plots.block_figure(blocks_of(view, record)),
        "Left: how much of each expert is in each group of parameters, to first order. Right: the fraction of zeros in "
        "it; embeddings, head and norms are not pruned.",
    )
    other = view.held_against(record)
    agreed = agreement_of(view, record, other) if other is not None else None
    if other is not None and agreed is not None:
        yield figures.place(
            plots.agreement_figure(agreed),
            f"Which instances this trial and {view.called(other)} (trial {other.number}) get right: a score of at "
            "least 0.5. Rest on a part to see which they are.",
        )
    found = ancestry_of(view, record)
    if found is not None:
        yield figures.place(plots.lineage_figure(view, found), found.caption)


def _chooser(view: View, answers: Answers, figures: _Figures) -> Iterator[str]:
    """Yield the agreement of two trials that the reader chooses; at first the knee and what it is held against."""
    from sae_moo.explore.draw.page import plots

    names = {record.number: names for record, names in by_trial((*view.picks, *view.references))}
    first, other = answers.trials[0], view.held_against(answers.trials[0])
    second = other if other is not None and other in answers.trials else answers.trials[1]
    found = agreement_of(view, first, second)
    assert found is not None, "all of these trials were asked the same instances"
    data = {
        "sizes": list(answers.sizes),
        "chosen": [first.number, second.number],
        "trials": [
            {
                "number": record.number,
                "name": view.called(record),
                "said": _choice(view, record, names.get(record.number, ())),
                "right": base64.b64encode(bits.tobytes()).decode(),
            }
            for record, bits in zip(answers.trials, np.packbits(answers.right, axis=1), strict=True)
        ],
    }
    missing = len({record.number for record in view.front} - {record.number for record in answers.trials})
    left = f"; {words.count(missing, 'trial')} of it found no room" if missing else ""
    yield '<h2 id="agreement">Agreement of two trials</h2><div id="chooser"><p>'
    yield "<label>First <select></select></label> <label>Second <select></select></label></p>"
    yield '<p role="status"></p>'
    yield figures.place(
        plots.agreement_figure(found),
        "Which instances of each task the two trials get right: a score of at least 0.5. Rest on a part to see which "
        f"they are. To choose from: the picks, the base, the experts, their average, and the front{left}.",
    )
    yield f'<script type="application/json" id="answers">{_json(data)}</script></div>'


def _choice(view: View, record: Ended, names: Sequence[Marked]) -> str:
    called = f"trial {record.number}" + (f" ({'; '.join(each.name for each in names)})" if names else "")
    return ", ".join([called, *(f"{o.name} {record.values[o.name]:.3f}" for o in view.objectives)])


def _json(document: object) -> str:
    """Return a document to be carried in a script element, which no name in it can end."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


class _Figures:
    """Numbers the figures of a page."""

    def __init__(self) -> None:
        self._count = 0

    def place(self, figure: Figure, caption: str) -> str:
        """Return a figure and its data, to be drawn once it comes near the window."""
        self._count += 1
        name = f"figure-{self._count}"
        data = _json(json.loads(figure.to_json()))
        height = int(figure.layout.height or 400)
        return (
            f'<figure><div class="plot" id="{name}" data-figure="{name}-data" style="height:{height}px"></div>'
            f"<figcaption>{escape(caption)}</figcaption>"
            f'<script type="application/json" id="{name}-data">{data}</script></figure>'
        )
