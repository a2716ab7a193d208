"""The order of work of a GPU, run on the CPU: what is sent is the tensor itself, ahead of time and by another thread."""

from __future__ import annotations

import threading

import pytest
import torch
from stand_ins import weights_of

from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization import plan
from sae_moo.materialization.feed import Feed
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune

NAMES = ("base", "math", "code")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    load_on = ExpertPool.load_on

    def loading(self, name, tensor, device):
        found.append((name, tensor))
        assert threading.current_thread() is not threading.main_thread()
        return load_on(self, name, tensor, device)

    monkeypatch.setattr(ExpertPool, "load_on", loading)
    return found


def test_the_next_tensor_is_on_its_way_while_this_one_is_used_and_none_is_sent_twice(tiny, asked):
    feed = Feed(tiny, "cpu", NAMES, ahead=True)
    for i, info in enumerate(tiny.tensors):
        feed.begin([info], tiny.tensors[i + 1 : i + 2])
        for name in NAMES:
            assert torch.equal(feed.get(name, info.name), tiny.load(name, info.name))
        on_their_way = [tensor.name for tensor in tiny.tensors[: i + 2]]
        assert set(feed._on_its_way) == set(on_their_way[-2:] if i + 1 < len(tiny.tensors) else on_their_way[-1:])
    assert asked == [(name, info.name) for info in tiny.tensors for name in NAMES]


def test_what_nobody_announced_is_sent_when_it_is_asked_for(tiny, asked):
    feed = Feed(tiny, "cpu", ("math",), ahead=True)
    feed.begin(tiny.tensors[:1], tiny.tensors[1:2])
    assert torch.equal(feed.get("law", tiny.tensors[3].name), tiny.load("law", tiny.tensors[3].name))
    assert ("law", tiny.tensors[3].name) in asked


def test_an_error_on_the_way_is_raised_where_the_tensor_is_needed(tiny, monkeypatch):
    def failing(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ExpertPool, "load_on", failing)
    feed = Feed(tiny, "cpu", NAMES, ahead=True)
    feed.begin(tiny.tensors[:1], tiny.tensors[1:2])
    with pytest.raises(RuntimeError, match="out of memory"):
        feed.get("math", tiny.tensors[0].name)


def test_sent_ahead_or_not_the_weights_are_the_same(tiny, tiny_model, asked, monkeypatch):
    merged = Merge("ties", (Expert("math"), Expert("code")), (0.6, 0.7), {"density": 0.5})
    recipe = Cast(Prune(Merge("zero_aware", (merged, Expert("law")), (0.5, 0.5), {"scale": 1.2}), 0.3), "float32")
    monkeypatch.setattr(plan, "Feed", lambda pool, device, names: Feed(pool, device, names, ahead=True))
    assert plan.Plan(recipe, tiny, "cpu", None)._feed._names == ("math", "code", "law", "base")
    materialize(recipe, tiny, tiny_model)
    ahead = weights_of(tiny, tiny_model)
    assert sorted(asked) == sorted((name, info.name) for info in tiny.tensors for name in tiny.names)
    monkeypatch.undo()
    materialize(recipe, tiny, tiny_model)
    assert all(torch.equal(ahead[name], weight) for name, weight in weights_of(tiny, tiny_model).items())
