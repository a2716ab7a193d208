"""Kernels for a GPU, run by Triton's interpreter on the CPU: the bits of the plain path."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined
pytest.importorskip("triton", reason="triton is not installed: no kernels for a GPU")

import test_merge as merging
from sae_moo.errors import WeightsError
from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.device.engine import Banded
from sae_moo.materialization.ops.device.tables import Card
from sae_moo.materialization.ops.engine import PENDING, Asked, OneByOne, Sought
from sae_moo.materialization.ops.jobs import Lines, Pruned, Stepped, Without
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.prune import Grid, Scoring, activated, magnitude
from sae_moo.recipe.methods import METHODS
from sae_moo.testing import experts

CARD = Card(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tile=64)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(fused, "available", lambda: False)


def engines():
    return Banded(CARD, Remembered()), OneByOne(Remembered())


def merged(engine, method, tensors, out, **settings):
    """Merge a band of tensors, each given as base and inputs, as a plan does; return them and their zeros."""
    row = METHODS[method]
    params = {**row.filled(settings), **row.fixed}
    places = []
    for number, (base, *xs) in enumerate(tensors):
        keys = tuple(f"x{i}" for i in range(len(xs)))
        flat = tuple(x.flatten() for x in xs)
        ground = base.flatten() if row.needs_base(params) else None
        operands = Operands(flat, ground, tuple(base.shape), (None,) * len(xs), keys)
        places.append((operands, Place(f"w{number}", True, params, 0, base.numel(), Remembered())))
    steps = {}
    while len(steps) < len(places):
        asking = []
        for i, (operands, place) in enumerate(places):
            if i not in steps:
                made = row.function(operands, [0.5, 0.3, 0.9][: len(operands.inputs)], place)
                asking.append((i, made, None))
        while asking:
            questions = []
            for i, made, reply in asking:
                if not hasattr(made, "send"):
                    steps[i] = made
                    continue
                try:
                    questions.append((i, made, made.send(reply)))
                except StopIteration as finished:
                    steps[i] = finished.value
            replies = engine.answers([Asked(question, *places[i], i) for i, _, question in questions])
            pairs = zip(questions, replies, strict=True)
            asking = [(i, made, reply) for (i, made, _), reply in pairs if reply is not PENDING]
        if len(steps) < len(places):
            engine.settle()
    outs = [torch.full((operands.numel,), 7.0, dtype=out) for operands, _ in places]
    work = [(Stepped(steps[i], operands), out) for i, ((operands, _), out) in enumerate(zip(places, outs, strict=True))]
    zeros = engine.write(work)
    engine.settle()
    return outs, list(zeros.counts)


def odd(size, count, dtype, seed=1):
    """Tensors with ties, zeros and differences of every size."""
    base, *xs = experts(count, size, seed=seed, dtype=dtype)
    for i, x in enumerate(xs):
        x.view(-1)[i :: 3 + i] = base.view(-1)[i :: 3 + i]
        x[x.abs() < 0.2] = 0
    return base, *xs


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F32, BF16)])
@pytest.mark.parametrize(("method", "settings"), merging.CASES)
def test_every_method_on_a_band_gives_the_bits_of_the_plain_path(method, settings, dtypes):
    inner, out = dtypes
    count = merging.inputs_of(method)
    band = [odd(size, count, inner) for size in [(1,), (2,), (7, 9), (1, 64), (5, 13)]]
    ours, plainly = engines()
    found, zeros = merged(ours, method, band, out, **settings)
    wanted, counted = merged(plainly, method, band, out, **settings)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs), (mine - theirs).abs().max()
    assert zeros == counted
    assert ours.waits <= 3
