"""How our own search breeds over lineages: the settings of `operators`, apart so that a YAML is read without pymoo."""

from __future__ import annotations

from typing import Annotated, ClassVar

from sae_moo.recipe.methods import METHODS, Method
from sae_moo.recipe.section import Field, Section, Share, ValidationInfo, field_validator

Deviation = Annotated[float, Field(ge=0.0, le=10.0)]


class Operators(Section):
    """``search.operators``: how children are merged and pruned."""

    later: ClassVar[frozenset[str]] = frozenset(
        {
            "switch",
            "graft",
            "tensors",
            "drop",
            "restructure",
            "remove",
            "removable",
            "contiguous",
            "edit",
            "narrow",
            "narrowest",
            "methods",
        }
    )

    remerge: Share = Field(
        default=1.0,
        description="probability that a child is merged anew from the experts by its parents' mixing weights; else "
        "their weights are merged",
    )
    keep: Share = Field(
        default=0.5,
        description="probability that a child merged anew has the first parent's mixing weights; and, apart from that, "
        "of what goes whole of it, that it is the first parent's",
    )
    spread: Deviation = Field(
        default=0.25, description="standard deviation of the first parent's share in a child, alike in all blocks"
    )
    jitter: Deviation = Field(default=0.05, description="standard deviation of that share from block to block")
    stretch: Share = Field(
        default=0.5, description="probability that a child's mixing weights, or its task vectors, are moved"
    )
    reach: Share = Field(default=0.1, description="standard deviation of that move")
    wobble: Deviation = Field(
        default=0.03, description="standard deviation of that move from block to block, where mixing weights are moved"
    )
    prune_after: bool = Field(default=True, description="whether a child is pruned after it is merged")
    inherit: Share = Field(
        default=0.5,
        description="probability that a child's sparsity is near its parent's; else it is drawn below the annealed "
        "ratio",
    )
    shift: Deviation = Field(default=0.08, description="standard deviation of an inherited sparsity from the parent's")
    shape: Share = Field(
        default=0.8, description="probability that a child inherits how a parent's sparsity differs over the blocks"
    )
    slope: Deviation = Field(
        default=0.15,
        description="standard deviation of what an inherited shape gains in slope from the first block to the last",
    )
    tilt: Annotated[float, Field(ge=0.0, le=2.0)] = Field(
        default=0.4,
        description="standard deviation of the slope of sparsity from the first block to the last, where no shape is "
        "inherited",
    )
    noise: Deviation = Field(default=0.04, description="standard deviation of every block's sparsity from its target")
    switch: Share = Field(
        default=0.0,
        description="probability that a child has the first parent's sparsities but for a level switch: one block's "
        "goes up a step and another's down, with as many zeros in all",
    )
    graft: Share = Field(
        default=0.0,
        description="probability that a child is pruned as its second parent is, whatever its own mixing weights are",
    )
    tensors: bool = Field(
        default=False,
        description="whether levels switch between the tensors of a block too, half of the time; of scattered zeros",
    )
    drop: Share = Field(
        default=0.0,
        description="probability that one expert is dropped in a child's merge, or taken back, in one block or a "
        "stretch of blocks",
    )
    restructure: Share = Field(
        default=0.2,
        description="with several scopes, or blocks: probability that what goes whole of a child is drawn anew; else "
        "it is inherited, for each scope apart",
    )
    remove: Share = Field(default=0.5, description="probability that a new draw removes blocks")
    removable: Annotated[float, Field(gt=0.0, le=0.5)] = Field(
        default=0.5, description="largest share of the blocks that is removed"
    )
    contiguous: Share = Field(
        default=0.7, description="probability that blocks drawn anew are a contiguous stretch; else any"
    )
    edit: Share = Field(
        default=0.3,
        description="probability that inherited removed blocks change: one more, one less, a stretch one further, or "
        "all anew",
    )
    narrow: Share = Field(
        default=0.5, description="probability that a new draw removes neurons, heads or experts of mixtures"
    )
    narrowest: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.5, description="largest share of a block's units that is drawn anew"
    )
    methods: list[str] = Field(
        default=[],
        description="merge methods that children merged anew are made by beside task arithmetic, at the settings usual "
        "for two models: those that add task vectors to the base. Which of them makes a child is drawn by the "
        "hypervolume that children of each have gained per evaluation. Empty: task arithmetic alone",
    )

    @field_validator("methods")
    @classmethod
    def _addable(cls, methods: list[str], info: ValidationInfo) -> list[str]:
        rows = [METHODS.find(name) for name in methods]
        able = [name for name, row in METHODS.items() if _adds(row) and not row.weighted_sum]
        for i, row in enumerate(rows):
            if not _adds(row):
                raise ValueError(
                    f"expected methods that add any number of task vectors ({', '.join(able)}), got {row.name!r}"
                )
            if row.weighted_sum or row in rows[:i]:
                again = "is among them anyway" if row.weighted_sum else "came before"
                raise ValueError(f"expected other methods than it, once each: {row.name!r} {again}")
        if rows and info.data.get("remerge") == 0.0:
            raise ValueError("is for children merged anew; with remerge: 0 there are none")
        return [row.name for row in rows]


def _adds(row: Method) -> bool:
    """Say whether a method adds weighted differences from the base, of any number of models, to it."""
    return row.adds_to_base and row.inputs[1] is None


class Ablation(Section):
    """``search.ablation``: parts of our own search that earned nothing in `studies/ablations`, or cost something.

    They are kept so that the studies can be repeated.
    """

    attraction: bool = Field(
        default=True,
        description="whether parents are paired that complement each other item by item; else by a second tournament",
    )
    founders: Share = Field(default=0.0, description="probability that the second parent is an original expert")
    zero_aware: bool = Field(
        default=True,
        description="whether, where one parent's weight is zero, the other's takes its place undiluted; of children "
        "that are not merged anew",
    )
    split: Share = Field(
        default=0.0,
        description="probability that a merge of two parents exchanges them behind a split point, as M2N2 does",
    )
    prune_before: bool = Field(default=False, description="whether parents are pruned before they are merged")
    ladder: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="how many models of the first population are averages pruned to evenly spaced sparsities"
    )


OPERATORS, ABLATION = Operators(), Ablation()  # as our own search has them
