"""How fast models are beside each other: by a clock of which every second is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sae_moo.deploy import pace
from sae_moo.deploy.pace import Pace, pace_words, rates


class Made:
    """A model that takes known seconds for every token that it reads and every one that it writes."""

    device = "cpu"

    def __init__(self, clock, reading, writing, slow=1.0):
        self.clock, self.reading, self.writing, self.slow = clock, reading, writing, slow
        self.config = SimpleNamespace(to_dict=lambda: {"max_position_embeddings": 40})
        self.asked = []

    def get_input_embeddings(self):
        return nn.Embedding(7, 2)

    def generate(self, tokens, attention_mask):
        new = self.generation_config.max_new_tokens
        batch, given = tokens.shape
        assert int(tokens.max()) < 7
        assert attention_mask.shape == tokens.shape
        self.asked.append((batch, given, new))
        work = self.reading * given + self.writing * new
        self.clock.now += batch * work * self.slow
        self.slow = 1.0  # the first round is disturbed
        return torch.zeros(batch, given + new)


@pytest.fixture
def clock():
    return SimpleNamespace(now=0.0)


def test_the_fastest_round_of_each_counts_and_all_of_a_batch_are_summed(clock):
    models = [Made(clock, 0.01, 0.0, slow=9.0), Made(clock, 0.005, 0.02)]
    found = rates(models, 0.0, lambda: clock.now)
    assert list(found) == [("prompt", 1), ("prompt", 16), ("decode", 1), ("decode", 16)]
    assert found["prompt", 1] == pytest.approx((100.0, 39 / (39 * 0.005 + 0.02)))
    assert found["prompt", 16] == pytest.approx(found["prompt", 1]), "as many tokens a second in all"
    assert found["decode", 1] == pytest.approx((16 / 0.01, 16 / (16 * 0.02 + 0.005)))
    assert models[0].asked == [(1, 39, 1)] * 2 + [(16, 39, 1)] * 2 + [(1, 1, 16)] * 2 + [(16, 1, 16)] * 2


def test_rounds_go_on_for_the_seconds_given_and_not_for_ever(clock):
    models = [Made(clock, 0.01, 0.01), Made(clock, 0.01, 0.01)]
    rates(models, 3.9, lambda: clock.now)
    first = [each for each in models[0].asked if each == (1, 39, 1)]
    assert len(first) == 5, "of 0.8 seconds each"
    fast = Made(clock, 0.0, 1e-9)
    rates([fast], 4.0, lambda: clock.now)
    assert len(fast.asked) == 4 * pace.ROUNDS[1]


def test_words_say_how_many_times_as_fast():
    measured = [Pace("prompt", 1, 30.0, 20.0), Pace("prompt", 16, 30.0, 30.0), Pace("decode", 1, 9.0, 12.0)]
    assert pace_words(measured, "cuda").endswith(
        "on cuda, the fastest of rounds that take turns: reading a prompt 1.50 at batch 1 and 1.00 at batch 16, "
        "writing 0.75 at batch 1 times as fast"
    )
