"""The module of a package with task kinds of its own; `guests.installed` puts it where an installer would."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from sae_moo.evaluate.kinds import TaskKind
from sae_moo.evaluate.task import Prompt, Request
from sae_moo.evaluate.tasks import encode
from sae_moo.recipe.section import Count, Field, Section


class Length(Section):
    """How much is written."""

    tokens: Count = Field(default=6, description="tokens that are written at most")


@dataclass(frozen=True, slots=True)
class Pattern:
    prompt: str
    pattern: str


def pattern_item(entry):
    try:
        re.compile(entry["pattern"])
    except re.error as error:
        raise ValueError(f"pattern: expected a regular expression, got {entry['pattern']!r}: {error}") from error
    return Pattern(entry["prompt"], entry["pattern"])


def ask(items, tokenizer):
    return [[Prompt(encode(tokenizer, item.prompt, "").context, 6, ("\n",))] for item in items]


def score(item, answers):
    return float(re.search(item.pattern, answers[0]) is not None)


class Loudness:
    """A task of its own making: how likely the prompt's last token is to come again."""

    def __init__(self, opening):
        self.name = opening.name
        self._items = opening.splits
        self._asked = {
            split: [
                Request(ids[:-1], ids[-1:])
                for ids in (tuple(opening.tokenizer(item.prompt).input_ids) for item in items)
            ]
            for split, items in opening.splits.items()
        }
        self.fingerprint = repr([opening.splits, opening.search, opening.test])

    def instances(self, split):
        return len(self._items[split])

    def source(self, split):
        return "acme"

    def requests(self, split):
        return self._asked[split]

    def owners(self, split):
        return np.arange(len(self._items[split]))

    def score(self, split, answers, instances=None):
        chosen = range(len(answers)) if instances is None else instances
        return np.array([np.exp(answers[i].logprob) for i in chosen], dtype=np.float64)

    def metrics(self, split, answers):
        return {}

    def samples(self, split, answers):
        for item in self._items[split]:
            yield {"prompt": item.prompt}


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str


def prompt_item(entry):
    return Question(entry["prompt"])


def broken_item(entry):
    return entry["nothing"]


def ask_nothing(items, tokenizer):
    return [[] for _ in items]


def ask_more(items, tokenizer, settings):
    return [[Prompt(encode(tokenizer, item.prompt, "").context, settings.tokens, ("\n",))] for item in items]


def score_more(item, answers, settings):
    return min(1.0, len(answers[0]) / (99 * settings.tokens))


class Counting(Loudness):
    """A task that reads no items: numbers, said again."""

    def __init__(self, opening):
        super().__init__(
            replace(
                opening,
                splits={
                    split: tuple(
                        Question(f"{i} {i} {i}") for i in range(start, start + count * opening.settings.tokens)
                    )
                    for split, start, count in (("search", 1, opening.search), ("test", 501, opening.test))
                },
            )
        )


def fail(opening):
    raise KeyError("graph")


REGEX = TaskKind(
    name="",
    summary="1 if what is written holds the pattern, else 0",
    fields=("prompt", "pattern"),
    item="acme:pattern_item",
    ask="acme:ask",
    score="acme:score",
)
LOUD = TaskKind(name="", summary="chance", fields=("prompt",), item="acme:prompt_item", make="acme:Loudness")
BROKEN = TaskKind(
    name="", summary="none", fields=("prompt",), item="acme:broken_item", ask="acme:ask", score="acme:score"
)
SILENT = TaskKind(
    name="", summary="none", fields=("prompt",), item="acme:prompt_item", ask="acme:ask_nothing", score="acme:score"
)
LONG = TaskKind(
    name="",
    summary="how much is written",
    fields=("prompt",),
    item="acme:prompt_item",
    ask="acme:ask_more",
    score="acme:score_more",
    settings=Length,
)
COUNTING = TaskKind(name="", summary="chance", make="acme:Counting", settings=Length)
FAILING = TaskKind(name="", summary="none", fields=("prompt",), item="acme:prompt_item", make="acme:fail")
POINTS = {
    "sae_moo.tasks": {
        "regex_match": "REGEX",
        **{name: name.upper() for name in ("loud", "broken", "silent", "failing", "long", "counting")},
    }
}
