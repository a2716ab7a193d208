"""Packages that offer rows, as an installer would leave them: a module and its metadata in a folder on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from sae_moo.recipe.catalogue import resolved


def installed(folder: Path, name: str, version: str, source: str, points: dict[str, dict[str, str]]) -> None:
    """Write a package with entry points into a folder; put the folder on the path to install it.

    Args:
        folder: where, as a site-packages.
        name: of the distribution; its module is called alike, with underscores.
        version: of the distribution.
        source: of the module.
        points: group -> name -> attribute of the module.
    """
    module = name.replace("-", "_").replace(".", "_")
    sys.modules.pop(module, None)  # another test's package of that name
    importlib.invalidate_caches()
    resolved.cache_clear()
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [
        line
        for group, rows in points.items()
        for line in (f"[{group}]", *(f"{row} = {module}:{attribute}" for row, attribute in rows.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


ANTS = '''
from sae_moo.recipe.section import Field, Section, Share, section_of
from sae_moo.searchers.algorithms import Algorithm
from sae_moo.searchers.scalar import RandomDraws, ScalarSearcher


class Ants(Section):
    """``search.ants``: the trail."""

    evaporation: Share = Field(default=0.1, description="share of the trail that is gone after a generation")
    visits: int = Field(default=3, description="visits of an ant")


class Trail(RandomDraws):
    def __init__(self, space, population, sparsest, evaporation):
        super().__init__(space, population, sparsest)
        self.evaporation = evaporation

    def advance(self, x, losses, rng):
        self.note(x, losses)
        drawn = super().advance(x, losses, rng)
        return self.evaporation * drawn + (1 - self.evaporation) * self.best


def make(assignment):
    space, settings = assignment.coefficients(), section_of(assignment.settings, Ants)
    return ScalarSearcher(
        space,
        assignment.objectives,
        assignment.constraints,
        optimizer=Trail(space, assignment.population, assignment.schedule.top, settings.evaporation),
        name="ants",
        weights=assignment.weights,
        seed=assignment.seed,
    )


def faults(draft):
    if draft.settings.get("ants") and draft.settings["ants"].visits > 9:
        yield ("search", "ants", "visits"), "an ant is tired after 9 visits"


ROW = Algorithm(
    name="ants",
    summary="ants on a trail",
    make="acme_ants:make",
    settings={"ants": Ants},
    spaces=("coefficients",),
    scalar=True,
    faults=faults,
)
GREEDY = Algorithm(name="greedy", summary="takes a name", make="acme_ants:make", settings={"population": Ants})
'''
ANT_POINTS = {"sae_moo.algorithms": {"ants": "ROW", "greedy": "GREEDY"}}


def ants(folder: Path, version: str = "1.2") -> None:
    """Write the package acme-ants, which offers a search algorithm."""
    installed(folder, "acme-ants", version, ANTS, ANT_POINTS)
