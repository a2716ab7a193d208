"""Settings of pre-screening: apart from the search, so that a YAML is read without pymoo or scikit-learn."""

from __future__ import annotations

from typing import Annotated, ClassVar

from sae_moo.recipe.section import Count, Field, Section, Share

# Numbers of the proposals that were chosen among others.
GAIN = "expected gain"  # hypervolume that it was expected to add
EXPLORED = "explored"  # 1 where it was taken whatever was expected of it, else 0


def predicted(objective: str) -> str:
    """Return what a trial calls the value of an objective that was expected of it."""
    return f"predicted {objective}"


def uncertainty(objective: str) -> str:
    """Return what a trial calls the standard deviation of that."""
    return f"spread of {predicted(objective)}"


class Prescreening(Section):
    """``search.prescreening``: more children are bred than evaluated, and those are chosen that promise most."""

    factor: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="children that are bred for each one that is evaluated; 1: none is left out; null: 4 for `nsga2` "
        "where it evaluates a generation at a time and no share is a generator's, else 1",
    )
    after: Count = Field(default=2, description="populations that are evaluated before there is enough to learn from")
    explore: Share = Field(
        default=0.2, description="share of those evaluated that are taken as they come, whatever is expected of them"
    )
    newest: Annotated[int, Field(ge=24, le=100_000)] = Field(
        default=400, description="largest number of evaluations that are learned from: the newest"
    )

    features: bool = Field(
        default=False,
        description="whether what experts have in common (see `predict`), mixed as they are mixed, is learned from too",
    )

    later: ClassVar[frozenset[str]] = frozenset({"factor", "after", "explore", "newest", "features"})

    @property
    def screens(self) -> bool:
        """Whether any child is left out."""
        return (self.factor or 1) > 1
