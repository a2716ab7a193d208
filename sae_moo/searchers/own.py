"""Our own search as it is configured: plain, with a learned operator, or pre-screened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sae_moo.recipe.section import section_of
from sae_moo.searchers.breeding import Ablation, Operators
from sae_moo.searchers.generated import GeneratingNsga
from sae_moo.searchers.learning import Generator
from sae_moo.searchers.nsga import NsgaSearcher
from sae_moo.searchers.prescreened import PrescreeningNsga
from sae_moo.searchers.prescreening import Prescreening
from sae_moo.searchers.searcher import Assignment
from sae_moo.searchers.space import LineageSpace


def make(assignment: Assignment, *, directions: bool) -> NsgaSearcher:
    """Return NSGA-II, or NSGA-III by reference directions, over the assigned space.

    Raises:
        ValueError: if children are to be made by a generator and pre-screened as well.
    """
    generator = section_of(assignment.settings, Generator)
    prescreening = section_of(assignment.settings, Prescreening)
    kind: Callable[..., NsgaSearcher] = NsgaSearcher
    if generator.share and prescreening.screens:
        raise ValueError("generator, prescreening: expected one of them, got both")
    if generator.share:
        kind = partial(GeneratingNsga, generator=generator)
    elif prescreening.screens:
        kind = partial(PrescreeningNsga, prescreening=prescreening, features=assignment.features)
    return kind(
        LineageSpace(assignment.ground) if assignment.space == "lineage" else assignment.coefficients(),
        assignment.objectives,
        assignment.constraints,
        directions=directions,
        population=assignment.population,
        seed=assignment.seed,
        schedule=assignment.schedule,
        pace=assignment.pace,
        settings=section_of(assignment.settings, Operators),
        ablation=section_of(assignment.settings, Ablation),
        allocations=assignment.allocations,
    )
