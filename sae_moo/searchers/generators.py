"""The networks of EvoGM, which learn from a history to turn losers into winners: the one place of torch in searches.

Source: Jiang et al. 2026 (arXiv 2605.29295), read in the authors' public code. They run on the CPU in one thread, in
float32, with random numbers of their own: nothing global is read, and nothing stays changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sae_moo.searchers.learning import CYCLE, PULL, Training

Array = NDArray[np.float64]


class Generators:
    """G, which turns losers into winners, and in the mode ``dual`` R, which turns winners into losers.

    Both are perceptrons with ReLU between their layers and tanh at the end, so that they map to (-1, 1). Layers of both
    are stacked and computed at once. What they make of vectors depends on settings, seeds and the histories that they
    were trained on, in order, and on the machine by rounding.

    Args:
        dim: number of coordinates.
        settings: how they learn.
        seed: entropy of the initial weights, numbers from 0.
    """

    def __init__(self, dim: int, settings: Training, seed: Sequence[int]) -> None:
        self._settings = settings
        random = _random(seed)
        sizes = (dim, *settings.widths, dim)
        with _by_itself():
            networks = [_layers(sizes, random) for _ in range(2 if settings.mode == "dual" else 1)]
            self._layers = [torch.stack(layer).requires_grad_() for layer in zip(*networks, strict=True)]
            self._adam = torch.optim.Adam(self._layers, lr=settings.rate, fused=True)

    def train(self, winners: Array, losers: Array, seed: Sequence[int]) -> dict[str, float]:
        """Train on a history, on top of earlier trainings.

        Every step sees as many losers as winners, of both sides no more than `Training.rows`: of what is more a part
        drawn anew. Its rows are not paired.

        Args:
            winners: shape (some, dim), in [-1, 1].
            losers: shape (some, dim), in [-1, 1].
            seed: entropy of what is drawn, numbers from 0.

        Returns:
            The losses of the last step, before their weights.
        """
        s, random = self._settings, _random(seed)
        with _by_itself(), torch.enable_grad():
            every = [torch.from_numpy(side.astype(np.float32)) for side in (losers, winners)]
            centre = every[1].mean(dim=0, keepdim=True)
            targets = centre.expand_as(every[0])
            if s.target == "nearest":
                targets = every[1][torch.cdist(every[0], every[1]).argmin(dim=1)]
            count = min(len(losers), len(winners), s.rows or len(losers))
            for _ in range(s.steps):
                losing, winning = (_drawn(len(side), count, random) for side in every)
                given = torch.stack([every[0][losing], every[1][winning]])  # what G turns, and what R turns
                there = _through(self._layers, given[: len(self._layers[0])])
                pull = F.mse_loss(there[0], targets[losing])
                loss, losses = s.pull * pull, {PULL: pull}
                if s.mode == "dual":
                    again = 2.0 * F.mse_loss(_through(self._layers, there.flip(0)), given.flip(0))  # a mean of two
                    loss, losses = loss + s.cycle * again, {CYCLE: again, **losses}
                self._adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._adam.step()
            return {name: value.item() for name, value in losses.items()}

    def __call__(self, x: Array) -> Array:
        """Return what G makes of vectors, shape (any, dim), in [-1, 1]."""
        with _by_itself(), torch.no_grad():
            made = _through([layer[:1] for layer in self._layers], torch.from_numpy(x.astype(np.float32))[None])[0]
        return np.clip(made.numpy().astype(np.float64), -1.0, 1.0)


def _layers(sizes: Sequence[int], random: torch.Generator) -> list[Tensor]:
    """Return each layer's weights, shape (into, out), and bias, (1, out), drawn as `torch.nn.Linear` draws its own."""
    layers = []
    for into, out in pairwise(sizes):
        bound = into**-0.5
        weight, bias = (
            torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-bound, bound, generator=random)
            for shape in ((out, into), (1, out))
        )
        layers += [weight.T.contiguous(), bias]
    return layers


def _through(layers: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return what perceptrons make of rows, each of its own: shape (networks, rows, dim)."""
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = F.relu(torch.baddbmm(bias, x, weight))
    return torch.tanh(torch.baddbmm(layers[-1], x, layers[-2]))


def _drawn(size: int, count: int, random: torch.Generator) -> Tensor | slice:
    """Return which rows of a side a step sees."""
    return slice(None) if size == count else torch.randperm(size, generator=random, device="cpu")[:count]


def _random(seed: Sequence[int]) -> torch.Generator:
    state = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


@contextmanager
def _by_itself() -> Iterator[None]:
    """Compute in one thread, so that sums have one order, whatever was set before; then set it so again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.set_num_threads(threads)
