"""Task kinds: what is asked of a model about own items, and how its answers are judged. A kind is one row here.

Needs no torch: the configuration asks the rows whether there is such a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_moo.objectives.scores import Split
from sae_moo.recipe.catalogue import Catalogue, Row
from sae_moo.recipe.section import Section

OVER_ITEMS = "sae_moo.evaluate.tasks:item_task"
"""What makes a task of one's own items, unless a kind says otherwise."""

OWN_ITEMS = "items of its own"
"""Where the items of a task come from that reads them from a file, or has them built in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind(Row):
    """One kind of task.

    A kind over own items names `fields`, `item`, `ask` and `score`, three functions about one item, and is a
    `tasks.ItemTask`. One that asks otherwise names `make`.

    Args:
        summary: what an instance scores, in a line without a full stop.
        fields: what each item, a JSON object a line of the file, must hold; ``prompt`` among them. Empty: it
            reads no such file.
        item: ``module:function``, from an object that has all fields to an item: a frozen dataclass with the attribute
            ``prompt``; items equal in all attributes are one. Raises ValueError saying what was expected; the file and
            line are told by others.
        ask: ``module:function``, from items and a tokenizer to the requests of each (`task.Request`,
            `task.Prompt`), in order.
        score: ``module:function``, from an item and the answers to its requests to a number in [0, 1].
        make: ``module:function``, from an `Opening` to a `task.Task`.
        settings: class of what stands under a task's ``settings`` in the configuration; None: there are none. `ask`
            and `score` get an instance as the argument ``settings``.
        keys: further keys of a task that only this kind reads; of the harness alone.

    Raises:
        ValueError: if it has fields and no item, or nothing that makes a task.
    """

    summary: str
    fields: tuple[str, ...] = ()
    item: str = ""
    ask: str = ""
    score: str = ""
    make: str = OVER_ITEMS
    settings: type[Section] | None = None
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.fields) != bool(self.item):
            raise ValueError(f"task kind {self.name}: expected fields and item, or neither")
        if self.make == OVER_ITEMS and not (self.item and self.ask and self.score):
            raise ValueError(f"task kind {self.name}: expected fields, item, ask and score, or make")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a task is made of.

    Args:
        name: what configuration and tables call it.
        kind: its kind.
        search, test: instances per split.
        tokenizer: a transformers tokenizer.
        folder: the base model's.
        longest: how many tokens the model reads at once; None if it does not say.
        directory: what relative paths of the configuration start from.
        splits: the items of each split; empty for kinds that read none.
        origin: where they come from, in a few words.
        settings: the kind's own; None where it has none.
        keys: of the harness's tasks, what its keys say.
    """

    name: str
    kind: TaskKind
    search: int
    test: int
    tokenizer: Any
    folder: Path
    longest: int | None
    directory: Path
    splits: Mapping[Split, tuple[Any, ...]] = field(default_factory=dict)
    origin: str = OWN_ITEMS
    settings: Section | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)


KINDS: Catalogue[TaskKind] = Catalogue(
    "task kind",
    "sae_moo.tasks",
    TaskKind,
    [
        TaskKind(
            name="multiple_choice",
            summary="1 if the right choice has the highest log probability, summed over its tokens, else 0",
            fields=("prompt", "choices", "label"),
            item="sae_moo.evaluate.tasks:choice_item",
            ask="sae_moo.evaluate.tasks:each_choice",
            score="sae_moo.evaluate.tasks:likeliest_is_right",
        ),
        TaskKind(
            name="exact_match",
            summary="1 if greedy decoding writes exactly the answer and then ends, else 0",
            fields=("prompt", "answer"),
            item="sae_moo.evaluate.tasks:answer_item",
            ask="sae_moo.evaluate.tasks:answer_that_ends",
            score="sae_moo.evaluate.tasks:is_written",
        ),
        TaskKind(
            name="likelihood",
            summary="geometric mean probability of the answer's tokens",
            fields=("prompt", "answer"),
            item="sae_moo.evaluate.tasks:answer_item",
            ask="sae_moo.evaluate.tasks:each_choice",
            score="sae_moo.evaluate.tasks:probability",
        ),
    ],
)

HARNESS = TaskKind(
    name="harness",
    summary="the chosen metric of a task of the EleutherAI harness",
    make="sae_moo.evaluate.harness:harness_task",
    keys=(
        "task",
        "include",
        "fewshot",
        "chat_template",
        "system_prompt",
        "multiturn",
        "metric",
        "filter",
        "generation",
        "documents",
    ),
)
"""Tasks of the harness. No configuration names this kind: it is what a task without items of its own is."""
