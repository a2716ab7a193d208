"""What a comparison came to, as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sae_moo.explore.decide.significance import p_text
from sae_moo.files.markdown import cell, escaped
from sae_moo.jobs.bench import versions
from sae_moo.jobs.compare.statistics import ON_TASK, SPARSITY_OF_CHOSEN, Comparison, Outcome, Summary


def document_of(comparison: Comparison) -> dict[str, Any]:
    """Return the JSON shape of a comparison."""
    return {
        "study": comparison.name,
        "run": str(comparison.folder),
        "split": "test",
        "objectives": list(comparison.objectives),
        "reference": comparison.reference,
        "reference_point": [0.0] * len(comparison.objectives),
        "versions": versions(),
        "methods": [
            {
                "name": name,
                "seeds": [outcome.seed for outcome in comparison.outcomes if outcome.method == name],
                "evaluations": [outcome.evaluations for outcome in comparison.outcomes if outcome.method == name],
                "tokens": [outcome.tokens for outcome in comparison.outcomes if outcome.method == name],
                "seconds": [round(outcome.seconds, 3) for outcome in comparison.outcomes if outcome.method == name],
                "quantities": {quantity: _summary_json(summary) for quantity, summary in quantities.items()},
            }
            for name, quantities in comparison.methods.items()
        ],
        "failed": dict(comparison.failed),
        "files": [str(file) for file in comparison.files],
    }


def _summary_json(summary: Summary) -> dict[str, Any]:
    return {
        "values": list(summary.values),
        "mean": summary.mean,
        "interval": None if math.isnan(summary.half) else [summary.mean - summary.half, summary.mean + summary.half],
        "difference": None if summary.difference is None else asdict(summary.difference),
    }


def csv_text(comparison: Comparison) -> str:
    """Return a line per search."""
    quantities = list(next(iter(comparison.methods.values())))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "evaluations", "tokens", "seconds", *quantities])
    for name, summaries in comparison.methods.items():
        for i, outcome in enumerate(sorted((o for o in comparison.outcomes if o.method == name), key=lambda o: o.seed)):
            values = [f"{summaries[quantity].values[i]:.6f}" for quantity in quantities]
            tokens = "" if outcome.tokens is None else outcome.tokens
            writer.writerow([name, outcome.seed, outcome.evaluations, tokens, f"{outcome.seconds:.1f}", *values])
    return text.getvalue()


def markdown_text(comparison: Comparison) -> str:
    """Return the results as Markdown tables."""
    quantities = list(next(iter(comparison.methods.values())))
    lines = [
        f"# {comparison.name}",
        "",
        "Test split. Models are chosen by the search split; the hypervolume is that of the front above the origin of "
        f"({', '.join(comparison.objectives)}). Mean over seeds ± half the 95 % t interval; differences from "
        f"{comparison.reference}, paired, with 95 % intervals and p over seeds (Student's t) and "
        "instances (bootstrap).",
        "",
        "| method | seeds | evaluations | forward tokens | seconds | " + " | ".join(quantities) + " |",
        "|---" * (len(quantities) + 5) + "|",
    ]
    for name, summaries in comparison.methods.items():
        own = [outcome for outcome in comparison.outcomes if outcome.method == name]
        evaluations, seconds = (
            np.mean([getattr(outcome, key) for outcome in own]) for key in ("evaluations", "seconds")
        )
        cells = [f"{len(own)}", f"{evaluations:.0f}", tokens_text(own), f"{seconds:.0f}"]
        cells += [value_text(summaries[quantity]) for quantity in quantities]
        lines.append(f"| {cell(name)} | " + " | ".join(cells) + " |")
    told = [q for q in quantities if q != SPARSITY_OF_CHOSEN and not q.startswith(ON_TASK)]
    lines += ["", f"| minus {comparison.reference} | " + " | ".join(told) + " |", "|---" * (len(told) + 1) + "|"]
    for name, summaries in comparison.methods.items():
        if name != comparison.reference:
            lines.append(f"| {cell(name)} | " + " | ".join(difference_text(summaries[q]) for q in told) + " |")
    lines += [f"\nfailed: {escaped(each)}: {escaped(why)}" for each, why in comparison.failed.items()]
    return "\n".join(lines) + "\n"


def value_text(summary: Summary) -> str:
    """Return a mean with half its interval, as tables show it."""
    return f"{summary.mean:.3f}" + ("" if math.isnan(summary.half) else f" ± {summary.half:.3f}")


def tokens_text(outcomes: Sequence[Outcome]) -> str:
    """Return the mean of forward tokens, as tables show it; nothing where some were not counted."""
    spent = [outcome.tokens for outcome in outcomes if outcome.tokens is not None]
    return f"{np.mean(spent):,.0f}" if len(spent) == len(outcomes) else ""


def difference_text(summary: Summary) -> str:
    """Return a difference with its interval and p value, as tables show it."""
    d = summary.difference
    if d is None:
        return ""
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {p_text(d.p)}"
