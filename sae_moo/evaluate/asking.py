"""How candidates are asked: the settings of tasks and of races, apart so that a YAML is read without what asks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from sae_moo import zoo
from sae_moo.evaluate.kinds import KINDS
from sae_moo.recipe.section import Count, Field, Section, field_validator


class TaskSection(Section):
    """One entry of ``tasks``: built in, one's own items (``data``, ``kind``), or a task of the evaluation harness."""

    name: Annotated[str, Field(min_length=1)] = Field(
        description="names the task; `zoo_math`, `zoo_lingua` and `zoo_logic` are built in, a name without `data` is a "
        "task of the harness"
    )
    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="file of your own items: JSON objects, one a line or in one list"
    )
    kind: str | None = Field(
        default=None, description="how your own items are scored; needed with `data`. `package/name` is a package's"
    )
    settings: dict[str, Any] = Field(default={}, description="settings of a package's kind")
    search: Count = Field(default=200, description="instances that the search asks")
    test: Annotated[int, Field(ge=0, le=10**9)] = Field(
        default=400, description="instances kept for judging what was found; the search never sees them"
    )
    task: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the harness's name for the task, if it is not `name`"
    )
    include: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="folder or file of your own harness YAMLs"
    )
    fewshot: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="examples before each question; null: as the task's YAML says"
    )
    chat_template: bool = Field(default=False, description="whether prompts go through the tokenizer's chat template")
    system_prompt: str | None = Field(default=None, description="system prompt before every question")
    multiturn: bool | None = Field(
        default=None,
        description="whether examples become turns of the chat; null: yes with a chat template, as in the harness",
    )
    metric: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the metric that scores an instance; null: the first of the task's `metric_list`"
    )
    filter: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the filter that reads the answer; null: the task's first"
    )
    generation: dict[str, Any] = Field(
        default={}, description="changes to the task's generation settings, such as `{max_gen_toks: 128}`"
    )
    documents: Literal["train", "validation", "test"] | None = Field(
        default=None,
        description="the documents that the search takes; null: validation, else training, else a part of those the "
        "harness evaluates on",
    )

    @field_validator("kind")
    @classmethod
    def _kind(cls, kind: str | None) -> str | None:
        return None if kind is None else KINDS.find(kind).name

    @property
    def name_in_harness(self) -> str:
        """The harness's name for it, or for a group of tasks."""
        return self.task or self.name

    @property
    def in_turns(self) -> bool:
        """Whether examples are turns of the chat instead of one message."""
        return self.chat_template if self.multiturn is None else self.multiturn

    @property
    def of_harness(self) -> bool:
        """Whether it is a task of the harness."""
        return (
            self.data is None
            and self.kind is None
            and (self.task is not None or self.include is not None or self.name not in zoo.TASKS)
        )


class Racing(Section):
    """``evaluation.racing``: parts the instances are asked in, confidence of giving a candidate up, margin.

    With probability `confidence` no candidate is stopped that, fully evaluated, would be beyond each member of the
    front by more than `margin` in some objective. With a margin of 0, those that are stopped wrongly are those that are
    not dominated.
    """

    blocks: Annotated[int, Field(ge=2, le=100)] = Field(default=10, description="parts that the instances are asked in")
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = Field(
        default=0.9, description="confidence with which a candidate must be beaten before it is stopped"
    )
    margin: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.01, description="how far beyond the front a candidate must promise to be, in some objective, to go on"
    )


class ScreeningSection(Section):
    """``evaluation.screening``: of how many allocations of a child's budget which one is evaluated with labels.

    All are ranked by how alike their next-token distributions are to those of the same merge unpruned.
    """

    candidates: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=8, description="allocations of the same budget that are proposed for each pruned child"
    )
    tokens: Annotated[int, Field(ge=2, le=10**9)] = Field(
        default=2048, description="tokens of text that all of them read, at most"
    )
    survivors: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2, description="how many of them go on to more tokens; 1: the best is chosen at once"
    )
    more: Annotated[int, Field(ge=2, le=10**9)] = Field(
        default=16384, description="tokens that the survivors have read in the end, at most"
    )
    measure: Literal["tv", "kl"] = Field(
        default="tv",
        description="what two distributions are compared by: `tv`, one minus their total variation; `kl`, minus the "
        "divergence of the pruned from the unpruned",
    )
    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="texts to compare on, `.txt` or `.jsonl` with `text`; null: the prompts of the tasks' search split",
    )


class ProbesSection(Section):
    """``predict.probes``: the texts without labels on which models are held beside each other."""

    data: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="texts, `.txt` or `.jsonl` with `text`, the same for every task; null: prompts of each task's "
        "search split, without their answers",
    )
    items: Annotated[int, Field(ge=1, le=100_000)] = Field(default=32, description="how many texts of each task")
    tokens: Annotated[int, Field(ge=2, le=10**9)] = Field(
        default=4096, description="how many tokens of each task's texts are read at most"
    )
