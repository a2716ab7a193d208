"""Settings of searches that learn to generate: apart from the networks, so that a YAML is read without torch or pymoo.

Source: Jiang et al. 2026 (EvoGM, arXiv 2605.29295); the defaults are the numbers of the authors' public code, and what
is ours is off unless it is asked for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from sae_moo.recipe.section import Amount, Count, Field, Section, Share, ValidationInfo, field_validator

# Numbers of the proposals that a generator made, and of those that stand beside them.
CYCLE, PULL = "cycle loss", "pull loss"
OFFSPRING, POPULATION = "spread of offspring", "spread of population"
SHARE = "generator share"  # how probable it was that a child is made by the generator

Coefficient = Annotated[float, Field(ge=-10.0, le=10.0)]
Width = Annotated[int, Field(ge=1, le=10_000)]


class Training(Section):
    """How a pair of networks learns to turn losers into winners; see `generators.Generators`."""

    mode: Literal["dual", "single"] = Field(
        default="dual",
        description="`dual`: G turns losers into winners and R winners into losers, and both ways there and back are "
        "learned; `single`: G alone",
    )
    winners: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.3, description="share of the history that counts as winners; the rest are losers"
    )
    steps: Count = Field(default=200, description="steps of Adam in each training")
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=1e-4, description="learning rate of Adam")
    rows: Count | None = Field(
        default=None,
        description="largest number of losers, and of winners, that a step sees; null: all of the fewer",
    )
    widths: Annotated[list[Width], Field(min_length=1, max_length=20)] = Field(
        default=[128, 256, 256, 256, 128], description="sizes of the hidden layers of each network"
    )
    cycle: Amount = Field(default=100.0, description="a_c: weight of the ways there and back; of `dual` alone")
    pull: Amount = Field(default=1.0, description="a_o: weight of the way from what G makes of losers to `target`")
    target: Literal["centre", "nearest"] = Field(
        default="centre",
        description="where losers are drawn to: the `centre` of all winners, or for each loser the winner `nearest` "
        "to it",
    )

    @field_validator("pull")
    @classmethod
    def _learns(cls, pull: float, info: ValidationInfo) -> float:
        if pull == 0 and (info.data.get("cycle") == 0 or info.data.get("mode") == "single"):
            raise ValueError("expected above 0, as nothing else is learned, got 0")
        return pull


class Evogm(Training):
    """``search.evogm``: rounds and iterations, what the generators learn, and what of it is not as published."""

    rounds: Count | None = Field(
        default=None,
        description="rounds, after which there is nothing left to try; null: until the budget is spent. Two rounds of "
        "10 experts, as published, are 160 evaluations",
    )
    iterations: Count = Field(default=3, description="in each round, how often the population goes through G")
    retrain: Literal["round", "iteration"] = Field(
        default="round", description="when the networks begin anew: with each `round`, or with each `iteration`"
    )
    shift: bool = Field(
        default=True,
        description="whether the best models of a round take the place of the experts in the next; else every round "
        "begins at the experts",
    )
    low: Coefficient = Field(default=-1.0, description="smallest coefficient of an expert in a round")
    high: Coefficient = Field(default=1.0, validate_default=True, description="largest coefficient, above `low`")
    selection: Literal["fitness", "front"] = Field(
        default="fitness",
        description="what winners win by, and who survives: one number (`fitness`, see `search.weights`), or rank and "
        "crowding on the `front` of all objectives, as in NSGA-II",
    )
    repeats: bool = Field(
        default=True,
        description="whether candidates that were evaluated before are asked for again; else what a round begins with "
        "keeps its evaluation, and noise is added to offspring",
    )
    collapse: Share = Field(
        default=0.0,
        description="spread of what G makes of the population, as a share of the population's own, below which noise "
        "is added; 0: never",
    )
    noise: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.05, description="standard deviation of that noise, as a share of the range of each coordinate"
    )
    jitter: Share = Field(
        default=0.1,
        description="standard deviation, from block to block, of what a round's first population draws, as a share of "
        "the range",
    )

    @field_validator("high")
    @classmethod
    def _above(cls, high: float, info: ValidationInfo) -> float:
        if high <= info.data.get("low", -11.0):
            raise ValueError(f"expected low < high, got {info.data['low']} >= {high}")
        return high


class Generator(Training):
    """``search.generator``: children of our own search that a learned generator makes."""

    share: Share = Field(default=0.0, description="share of the children that the generator makes; 0: none")
    adaptive: bool = Field(
        default=False,
        description="whether that is the share at first alone, and then follows the hypervolume that a child of the "
        "generator, and one of the other operators, has gained",
    )
    after: Count = Field(default=2, description="populations that are evaluated before there is enough to learn from")
    renew: Count = Field(
        default=3, description="populations after which the networks begin anew; until then they learn on"
    )
    rows: Count | None = Field(
        default=32,
        description="largest number of losers, and of winners, that a step sees, so that it takes no longer as the "
        "history grows; null: all of the fewer",
    )
    noise: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.05,
        description="standard deviation of what is added to a child that would repeat another one, as a share of the "
        "range of each coordinate",
    )

    later: ClassVar[frozenset[str]] = frozenset(
        {*Training.model_fields, "share", "adaptive", "after", "renew", "noise"}
    )

    @field_validator("adaptive")
    @classmethod
    def _has_a_choice(cls, adaptive: bool, info: ValidationInfo) -> bool:
        share = info.data.get("share", 0.5)
        if adaptive and not 0.0 < share < 1.0:
            raise ValueError(f"expected a share above 0 and below 1 to begin with, got {share:g}")
        return adaptive
