"""Fills the generated tables of README and docs from the code: ``python docs/tables.py`` (``--check`` only looks).

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; `TABLES` says what each NAME is made of.
"""

from __future__ import annotations

import inspect
import os.path
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.main import get_command

from sae_moo.cli.main import app
from sae_moo.config.document import Config
from sae_moo.deploy import zeros
from sae_moo.deploy.formats import FORMATS
from sae_moo.evaluate.kinds import KINDS
from sae_moo.recipe import SCOPES
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS
from sae_moo.searchers.algorithms import ALGORITHMS, Algorithm
from sae_moo.searchers.schedule import ADAPTIVE, SHAPES

ROOT = Path(__file__).resolve().parents[1]
REGION = re.compile(r"(<!-- generated: ([^\n]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# What the catalogues do not say of their rows. A row without words, or words without a row, is an error.
COMMANDS = {
    "search": ("CONFIG", "searching.md"),
    "validate": ("CONFIG", "searching.md#check-before-you-run"),
    "front": ("RUN", "looking.md#the-front-as-a-table"),
    "trials": ("RUN", "looking.md#every-trial"),
    "pick": ("RUN", "deciding.md"),
    "diff": ("RUN N M", "deciding.md#two-models-side-by-side"),
    "export": ("RUN", "exporting.md"),
    "unpack": ("FILE", "exporting.md#packed-and-delta"),
    "evaluate": ("MODEL", "tasks.md#score-any-model"),
    "merge": ("FILE", "mergekit.md"),
    "compare": ("CONFIG", "comparing.md"),
    "predict": ("CONFIG", "predict.md"),
    "report": ("RUN", "looking.md#one-page-to-pass-on"),
    "figures": ("RUN", "looking.md#pictures-for-a-paper"),
    "dashboard": ("RUN", "looking.md#the-dashboard"),
    "doctor": ("RUN", "looking.md#is-it-whole"),
}
SCOPE_WORDS = {
    "tensor": "all weights of one tensor",
    "group": "all prunable weights of one block",
    "global": "all prunable weights of the model",
    "row": "the weights of one output; the same number goes from each",
    "neurons": "whole neurons of an MLP, with their biases; as many in every block",
    "heads": "whole key/value groups of attention heads, with their biases; as many in every block",
    "moe-experts": "whole experts of a mixture, with their rows of the router; as many of every mixture",
    "blocks": "whole transformer blocks; a removed one passes on what it is given",
}
SCHEDULE_WORDS = {
    "constant": "always `high`",
    "sawtooth": "a straight line from `low` to `high` in every cycle",
    "sine": "a quarter of a sine from `low` to `high`: fast first",
    "cosine": "half a cosine from `low` to `high`: slow at both ends",
    "sae-published": "the sine over the upper half of the range, as SAE's published code runs it",
    "adaptive": "ratios drawn by what the children pruned at them gained; our own search over lineages and SAE only",
}
WEIGHT_WORDS = {
    "any": "any",
    "sum": "sum not 0",
    "mixing": "none negative, sum above 0",
    "unused": "none",
}


def commands(page: Path) -> str:
    """Return the commands, each linked to its page, with the first sentence of its help."""
    found = get_command(app).commands  # type: ignore[attr-defined]
    rows = []
    for name, (argument, target) in _worded(found, COMMANDS):
        link = os.path.relpath(ROOT / "docs" / target, page.parent)
        rows.append((f"[`{name} {argument}`]({link})", _first_sentence(found[name].help)))
    return _table(("command", "what it does"), rows)


def keys(page: Path, section: str) -> str:  # noqa: ARG001  # every table knows its page
    """Return the keys of a section, ``search`` or ``search.operators``; type, default and meaning of each."""
    settings = _settings()
    head, _, rest = section.partition(".")
    schema = settings[rest].model_json_schema() if head == "search" and rest else Config.model_json_schema()
    properties = schema["properties"]
    for part in () if head == "search" and rest else section.split("."):
        properties = schema["$defs"][_section_of(properties[part])]["properties"]
    rows = [
        (
            f"`{key}`",
            _values(value),
            f"`{_yaml(value['default'])}`" if "default" in value else "required",
            value["description"],
        )
        for key, value in properties.items()
    ]
    if section == "search":
        for key in settings:
            readers = ", ".join(f"`{name}`" for name, row in ALGORITHMS.items() if key in row.settings)
            rows.append((f"`{key}`", "section", "see below", f"settings that only some algorithms read: {readers}"))
    return _table(("key", "values", "default", "meaning"), rows)


def _settings() -> dict[str, Any]:
    """Return the sections that only some algorithms read; where families differ, the one with the most keys."""
    found: dict[str, Any] = {}
    for row in ALGORITHMS.values():
        for key, kind in row.settings.items():
            if key not in found or len(kind.model_fields) > len(found[key].model_fields):
                found[key] = kind
    return found


def algorithms(page: Path) -> str:  # noqa: ARG001
    """Return the algorithms and what each does with a configuration."""
    one_number = {False: "", True: "yes", None: "with `search.weights`"}
    rows = []
    for name, row in ALGORITHMS.items():
        reads = ", ".join(f"`{key}`" for key in (*(["pace"] if row.paces else []), *row.settings))
        able = ["yes" if able else "" for able in (row.races, row.screens)]
        rows.append((f"`{name}`", _cited(row), ", ".join(row.spaces), one_number[row.one_number({})], reads, *able))
    heads = ("`search.algorithm`", "what it is", "space", "one number", "reads of `search`", "can race", "can screen")
    return _table(heads, rows)


def abreast(page: Path) -> str:  # noqa: ARG001
    """Return how many candidates the algorithms have out at a time."""
    by_words: dict[str, list[str]] = {}
    for name, row in ALGORITHMS.items():
        by_words.setdefault(_abreast(row), []).append(f"`{name}`")
    rows = [(", ".join(names), words) for words, names in by_words.items()]
    return _table(("`search.algorithm`", "candidates at a time"), rows)


def _abreast(row: Algorithm) -> str:
    """Return in words how many candidates an algorithm asks for before it must be told more."""
    if row.waits and row.paces:
        return "a generation; with `pace: steady-state`, any number once the first generation is evaluated"
    if row.waits:
        return "a generation" if row.spaces else "all merges it tries, then the best one at all levels"
    if row.spaces:
        return "any number, once its first population is evaluated"
    return "all experts, then any number of pairs, of chains, and the best merge at all levels, one after the other"


def merge_methods(page: Path) -> str:  # noqa: ARG001
    """Return the merge methods: summary, source, inputs, weights, settings."""
    rows = []
    for name, method in METHODS.items():
        low, high = method.inputs
        inputs = str(low) if high == low else f"{low} or more" if high is None else f"{low} to {high}"
        settings = []
        for key, setting in method.settings.items():
            choices = f" ({', '.join(setting.choices)})" if setting.choices else ""
            settings.append(f"`{key}`: {_yaml(setting.default)}{choices}")
        rows.append((f"`{name}`", _cited(method), inputs, WEIGHT_WORDS[method.weights], "; ".join(settings)))
    return _table(("method", "what it is", "inputs", "weights", "settings and defaults"), rows)


def task_kinds(page: Path) -> str:  # noqa: ARG001
    """Return the kinds of a user's own items."""
    rows = [(f"`{name}`", ", ".join(f"`{each}`" for each in row.fields), row.summary) for name, row in KINDS.items()]
    return _table(("`kind`", "an item has", "score of an item, in [0, 1]"), rows)


def criteria(page: Path) -> str:  # noqa: ARG001
    """Return the pruning criteria."""
    rows = [(f"`{name}`", _cited(row), row.needs or "nothing") for name, row in CRITERIA.items()]
    return _table(("`pruning.criterion`", "weights are ranked by", "needs"), rows)


def scopes(page: Path) -> str:  # noqa: ARG001
    """Return the pruning scopes."""
    rows = [(f"`{name}`", words) for name, words in _worded(SCOPES, SCOPE_WORDS)]
    rows.append(("`N:M`", "every M consecutive inputs of an output, of which at most N stay, such as `2:4`"))
    return _table(("`pruning.scope`", "what competes for the zeros"), rows)


def schedules(page: Path) -> str:  # noqa: ARG001
    """Return the schedules of annealing."""
    rows = [(f"`{name}`", words) for name, words in _worded((*SHAPES, ADAPTIVE), SCHEDULE_WORDS)]
    return _table(("`annealing.schedule`", "course of the ratio"), rows)


def formats(page: Path) -> str:  # noqa: ARG001
    """Return the export formats."""
    rows = [
        (f"`{name}`", row.summary, "folder" if row.folder else "file", row.loads, row.needs or "nothing")
        for name, row in FORMATS.items()
    ]
    return _table(("`--format`", "what is written", "as", "read by", "needs"), rows)


def gains(page: Path) -> str:  # noqa: ARG001
    """Return what zeros are good for where a model runs, by how they lie."""
    rows = [
        ("scattered", zeros.SCATTERED),
        ("`2:4`", zeros.TWO_FOUR),
        ("whole blocks, neurons and heads", zeros.STRUCTURED),
    ]
    return _table(("zeros", "where a model runs"), rows)


TABLES: Mapping[str, Callable[..., str]] = {
    "commands": commands,
    "keys": keys,
    "algorithms": algorithms,
    "abreast": abreast,
    "merge methods": merge_methods,
    "task kinds": task_kinds,
    "criteria": criteria,
    "scopes": scopes,
    "schedules": schedules,
    "formats": formats,
    "gains": gains,
}
"""What stands behind ``generated:``, and what makes the table; what follows a colon is an argument."""


def pages() -> list[Path]:
    """Return README and every page of the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(page: Path) -> str:
    """Return the text of a page with its tables made anew."""

    def made(region: re.Match[str]) -> str:
        name, _, argument = region[2].partition(": ")
        if name not in TABLES:
            raise SystemExit(f"{page}: no table {name!r}; there are {', '.join(TABLES)}")
        return f"{region[1]}{TABLES[name](page, *filter(None, [argument]))}{region[4]}"

    return REGION.sub(made, page.read_text(encoding="utf-8"))


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with ``--check`` name the pages whose tables are stale; the exit status."""
    if any(argument != "--check" for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [page for page in pages() if filled(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        if not arguments:
            page.write_text(filled(page), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'stale; run python docs/tables.py' if arguments else 'written'}")
    return 1 if stale and arguments else 0


def _worded(rows: Iterable[str], words: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the words of each row, in the order of the words."""
    missing = {*rows} ^ {*words}
    if missing:
        raise SystemExit(f"docs/tables.py: words and rows differ by {', '.join(sorted(missing))}")
    return list(words.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _cited(row: Any) -> str:
    """Return the summary of a catalogue's row, with its source."""
    return f"{row.summary} ({row.source})" if row.source else str(row.summary)


def _first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring as Markdown."""
    plain = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split()).replace("``", "`")
    end = re.search(r"\.(?= |$)", plain)
    return plain if end is None else plain[: end.end()]


def _section_of(value: Mapping[str, Any]) -> str:
    """Return the section that a key of the schema holds, alone, in a list, in a mapping, or beside names."""
    found = re.findall(r"#/\$defs/(\w+)", str(value))
    if not found:
        raise SystemExit("docs/tables.py: that key is no section")
    return found[-1]


def _values(value: Mapping[str, Any]) -> str:
    """Return what values a key of the schema takes."""
    choices = value.get("anyOf", value.get("oneOf"))
    if choices is not None:
        return " or ".join(_values(each) for each in choices if each.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    match value.get("type"):
        case "array":
            return f"list of {_values(value['items'])}"
        case "object":
            inner = value.get("additionalProperties")
            return f"mapping to {_values(inner)}" if isinstance(inner, dict) else "mapping"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _range(value)
        case "string":
            return "text"
        case "boolean":
            return "true, false"
    return "section"


def _range(value: Mapping[str, Any]) -> str:
    """Return the range of a number; bounds so wide that nobody meets them are left out."""
    low, high = value.get("minimum", value.get("exclusiveMinimum")), value.get("maximum", value.get("exclusiveMaximum"))
    above = "above" if "exclusiveMinimum" in value else "from"
    below = "below" if "exclusiveMaximum" in value else "to"
    parts = [] if low is None else [f"{above} {low:g}"]
    parts += [] if high is None or high > 1000 else [f"{below} {high:g}"]
    return " " + " ".join(parts) if parts else ""


def _yaml(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "[" + ", ".join(_yaml(each) for each in value) + "]"
        case dict() if value:
            return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
