"""The model card: where a model comes from, what it scores, what may be done with it, how to make it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sae_moo.deploy import zeros
from sae_moo.deploy.stream import Stream
from sae_moo.experts.checkpoint import ZOO, ModelWeights
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.markdown import escaped, row
from sae_moo.objectives.scores import Score, Split, optimism

_PACKED = "Packed (`sae-moo export --format packed`), zeros save download and disk."
_USE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
asked = tokenizer("Your prompt", return_tensors="pt")
print(tokenizer.decode(model.generate(**asked, max_new_tokens=20)[0]))"""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card says.

    Args:
        title: the model's name.
        why: why this trade-off, without a full stop.
        facts: further lines, name -> value.
        scores: split -> task -> score.
        notes: paragraphs on the format and the zeros, Markdown.
        warnings: what a reader must know, a sentence each; those about licences are added by `text`.
        again: the command that makes the model again.
        loads: whether what it lies in can be loaded, so that how to use it is told.
    """

    title: str
    why: str
    facts: Mapping[str, str]
    scores: Mapping[Split, Mapping[str, Score]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    again: str = "sae-moo merge recipe.json --output DIR"
    loads: bool = True

    def scored(self, scores: Mapping[Split, Mapping[str, Score]]) -> Card:
        """Return the card with other scores."""
        return replace(self, scores=scores)

    def of(self, stream: Stream) -> Card:
        """Return the card with what the zeros of weights that have passed are good for, if there are any."""
        if not stream.sparsity():
            return self
        fits, matrices = sum(stream.two_four.values()), len(stream.two_four)
        if not fits:
            return replace(self, notes=self.notes or (f"Stored dense: {zeros.SCATTERED}.", _PACKED))
        pattern = f"In {fits} of {matrices} prunable matrices at most two of every four consecutive inputs are not zero"
        return replace(self, notes=(*self.notes, f"{pattern}, stored dense: {zeros.TWO_FOUR}.", _PACKED))

    def text(self, pool: ExpertPool) -> str:
        """Return the ``README.md`` of a model merged from a pool's experts."""
        licences = {name: licence(weights) for name, weights in pool.checkpoints.items()}
        lines = ["---", yaml.safe_dump(_front_matter(pool, licences), sort_keys=False).rstrip(), "---", ""]
        lines += [f"# {escaped(self.title)}", "", escaped(self.why) + ".", ""]
        warnings = [*self.warnings, *_licence_warnings(licences)]
        if warnings:
            lines += ["## Warnings", "", *(f"- {escaped(warning)}" for warning in warnings), ""]
        lines += ["## Origin", "", "| | source | licence | fingerprint of the weights |", "|---|---|---|---|"]
        lines += [
            row(name, weights.source, licences[name] or "unknown", f"`{pool.fingerprints[name]}`")
            for name, weights in pool.checkpoints.items()
        ]
        lines += ["", "| | |", "|---|---|", *(row(name, value) for name, value in self.facts.items()), ""]
        if self.scores:
            lines += ["## Scores", ""]
        for split, tasks in self.scores.items():
            note = "the search chose by these" if split == "search" else "never seen by the search"
            lines += [f"{split.capitalize()} split ({note}), mean with standard error:", ""]
            lines += ["| | score | instances |", "|---|---|---|"]
            lines += [row(task, f"{s.score:.4f} ± {s.stderr:.4f}", str(s.instances)) for task, s in tasks.items()]
            lines += [""]
        if {"search", "test"} <= set(self.scores):
            test = self.scores["test"]
            found = {task: optimism(own, test[task]) for task, own in self.scores["search"].items()}
            told = ", ".join(f"{escaped(task)} {each.mean:+.4f} ± {each.stderr:.4f}" for task, each in found.items())
            lines += [f"Optimism of the search (search minus test): {told}.", ""]
        if self.notes:
            lines += ["## Zeros and speed", "", *(line for note in self.notes for line in (note, ""))]
        if self.loads:
            lines += ["## To use it", "", "```python", _USE, "```", ""]
        lines += ["## To make it again", "", "```sh", self.again, "```", ""]
        return "\n".join(lines)


def licence(weights: ModelWeights) -> str | None:
    """Return what a model's folder says of its licence: ``README.md``'s front matter, else how a licence file begins.

    None where it says nothing; that is not a permission.
    """
    if weights.origin.startswith(ZOO):
        return "apache-2.0"  # trained by and packed with this library
    stated = _front_matter_of(weights.folder / "README.md")
    named = stated.get("license")
    if named == "other":
        named = stated.get("license_name") or named
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    if named:
        return str(named)
    for file in sorted([*weights.folder.glob("LICENSE*"), *weights.folder.glob("LICENCE*")]):
        lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
        if lines:
            return f"{lines[0][:80]} ({file.name})"
    return None


def _front_matter_of(readme: Path) -> dict[str, Any]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", _text(readme), re.DOTALL)
    try:
        stated = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return stated if isinstance(stated, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _front_matter(pool: ExpertPool, licences: Mapping[str, str | None]) -> dict[str, Any]:
    hub = [weights.origin.partition("@")[0] for weights in pool.checkpoints.values()]
    hub = [name for name in hub if _HUB_ID.fullmatch(name)]
    shared = set(licences.values())
    only = next(iter(shared)) if len(shared) == 1 else None
    return {
        "library_name": "transformers",
        **({"license": only} if only and re.fullmatch(r"[\w.-]+", only) else {}),
        **({"base_model": hub, "base_model_relation": "merge"} if hub else {}),
        "tags": ["merge", "pruned", "sae-moo"],
    }


def _licence_warnings(licences: Mapping[str, str | None]) -> Sequence[str]:
    unknown = [name for name, stated in licences.items() if stated is None]
    warnings = []
    if unknown:
        warnings.append(
            f"The licence of {', '.join(unknown)} is unknown: no README.md and no licence file beside the weights "
            "names it. Find out before you hand this model on."
        )
    known = sorted({stated for stated in licences.values() if stated is not None})
    if len(known) > 1:
        warnings.append(f"The licences differ ({'; '.join(known)}): the model is bound by all of them.")
    if any("nc" in re.split(r"[^a-z]+", stated.lower()) for stated in known):
        warnings.append("A licence names non-commercial use only.")
    return warnings
