"""A guest's package, as somebody else would write it: a merge method, pruning criteria, and some that are broken."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from guests import installed

from sae_moo.recipe.catalogue import resolved
from sae_moo.recipe.criteria import CRITERIA
from sae_moo.recipe.methods import METHODS

SOURCE = '''
from dataclasses import dataclass

from sae_moo.recipe.criteria import Criterion
from sae_moo.recipe.methods import Method, Setting, WholeModel


@dataclass(frozen=True)
class Median:
    """The median of the inputs, pulled towards the base."""

    pull: float
    align: int = 1

    def chunk(self, inputs, base, start):
        import torch

        middle = torch.stack(list(inputs)).median(dim=0).values
        return middle + (base - middle) * self.pull


def median(x, weights, place):
    return Median(place.number("pull"))


def broken(x, weights, place):
    raise KeyError("nowhere")


def loudest(models, pool, device):
    """For each tensor 1 for the model whose largest weight is the largest, 0 for the others."""
    most = [[float(model(info).abs().max()) for info in pool.tensors] for model in models]
    return tuple(tuple(float(value == max(row)) for value in row) for row in zip(*most))


def chosen(x, weights, place):
    from sae_moo.materialization.ops.steps import terms

    return terms(place.each("loudest", len(weights)))


def relative(weights, factors):
    """What a weight is of its row and of its column, times the square root of the feature's norm where there is one."""
    size = weights.abs()
    shares = size / size.sum(dim=-1, keepdim=True).clamp_min(1e-30) + size / size.sum(dim=0).clamp_min(1e-30)
    return shares if factors is None else shares * factors.sqrt()


def negative(weights, factors):
    return -weights.abs()


ABOUT = dict(summary="for tests", source="acme")
PULL = Setting(default=0.0, least=0, most=1, about="share of the base")
MEDIAN = Method(name="x", step="acme:median", settings={"pull": PULL}, weights="unused", reads_base=True, **ABOUT)
LOUDEST = Method(
    name="x", step="acme:chosen", whole_model=WholeModel(setting="loudest", measure="acme:loudest"), weights="unused", **ABOUT
)
BROKEN = Method(name="x", step="acme:broken", **ABOUT)
GONE = Method(name="x", step="acme:nothing", **ABOUT)
RELATIVE = Criterion(name="x", score="acme:relative", **ABOUT)
ACTIVE = Criterion(name="x", score="acme:relative", needs="activations", **ABOUT)
NEGATIVE = Criterion(name="x", score="acme:negative", whole=False, **ABOUT)
FISHER = Criterion(name="x", score="acme:relative", needs="gradients", **ABOUT)
'''
POINTS = {
    "sae_moo.methods": {"median": "MEDIAN", "loudest": "LOUDEST", "broken": "BROKEN", "gone": "GONE"},
    "sae_moo.criteria": {
        "relative": "RELATIVE",
        "active": "ACTIVE",
        "negative": "NEGATIVE",
        "fisher": "FISHER",
    },
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str | None = "1.2") -> None:
    """Install a version of the package, in this process and for those that it starts; None: none, from now on."""
    for catalogue in (METHODS, CRITERIA):
        monkeypatch.setattr(catalogue, "_guests", {})
    monkeypatch.setitem(sys.modules, "acme", ModuleType("acme"))  # so that what is imported is forgotten afterwards
    del sys.modules["acme"]
    resolved.cache_clear()
    shutil.rmtree(folder, ignore_errors=True)
    importlib.invalidate_caches()
    if version is None:
        return
    folder.mkdir()
    installed(folder, "acme", version, SOURCE, POINTS)
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
