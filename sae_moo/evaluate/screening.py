"""Screening: of several allocations of one budget of zeros, the one most like its own unpruned merge is evaluated.

A pruned merge has a teacher, the same merge unpruned. Allocations are ranked without labels, by how alike the
next-token distributions of both are after every token of a few texts: all allocations on a few tokens first, the best
of them on more. The ranking in stages is EvoPress's (Sieberling et al. 2024, arXiv 2410.14649), which compares by the
Kullback-Leibler divergence to the dense model.

Nothing is estimated: the teacher's distributions are kept over the whole vocabulary, in float32. Where those of a
stage would take more than `KEPT_BYTES`, its texts are read part by part, and the models materialized anew for each:
more merges, not one more token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.errors import TaskError, WeightsError
from sae_moo.evaluate.asking import ScreeningSection
from sae_moo.evaluate.hardware import PASSES
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.parents import WeightCache
from sae_moo.objectives import Screened
from sae_moo.recipe import Cast, Recipe
from sae_moo.recipe.structure import merged

Measure = Literal["tv", "kl"]

KEPT_BYTES = 1 << 31
"""The teacher's log probabilities that are in memory at a time, at most."""
PASS_BYTES = 1 << 28
"""Logits of a forward pass, at most, unless a single text has more."""
PLACES = 512
"""Places whose distributions are compared at a time."""
DIGITS = 9
"""To which similarities are rounded: sums depend on the machine in their last digits, and ties go to the first."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Sequences of tokens laid out for forward passes: of one length in each, so that nothing is padded.

    Args:
        batches: token ids on the models' device, int64, each of shape (sequences, length).
        vocabulary: how many tokens there are.
    """

    batches: tuple[Tensor, ...]
    vocabulary: int

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], vocabulary: int, device: torch.device | str = "cpu") -> Texts:
        """Lay sequences out, the short ones first, those of a length in their order."""
        most = max(1, min(PASSES.on(device), PASS_BYTES // (4 * vocabulary)))
        by_length: dict[int, list[Sequence[int]]] = {}
        for sequence in sequences:
            by_length.setdefault(len(sequence), []).append(sequence)
        batches = []
        for length in sorted(by_length):
            alike, rows = by_length[length], max(1, most // length)
            batches += [torch.tensor(alike[i : i + rows], device=device) for i in range(0, len(alike), rows)]
        return cls(tuple(batches), vocabulary)

    @property
    def tokens(self) -> int:
        """How many tokens a model reads."""
        return sum(batch.numel() for batch in self.batches)

    def parts(self, most: int = KEPT_BYTES) -> Iterator[Texts]:
        """Yield the texts in parts whose log probabilities take at most so many bytes, or are of a single pass."""
        part: list[Tensor] = []
        for batch in self.batches:
            if part and 4 * self.vocabulary * (sum(each.numel() for each in part) + batch.numel()) > most:
                yield Texts(tuple(part), self.vocabulary)
                part = []
            part.append(batch)
        if part:
            yield Texts(tuple(part), self.vocabulary)


@torch.inference_mode()
def log_probabilities(model: Any, texts: Texts) -> list[Tensor]:
    """Return what a model expects to follow each token of texts.

    Args:
        model: a transformers causal LM on the texts' device.
        texts: what it reads.

    Returns:
        Natural log probabilities by batch, float32, shape (tokens of the batch, vocabulary).

    Raises:
        TaskError: if logits are not finite; minus infinity is how a model rules tokens out.
    """
    return [_log_probabilities(model, batch) for batch in texts.batches]


@torch.inference_mode()
def similarity(teacher: Sequence[Tensor], model: Any, texts: Texts, measure: Measure = "tv") -> NDArray[np.float64]:
    """Return how alike the next-token distributions of a model and its teacher are after each token of texts.

    Args:
        teacher: the other model's `log_probabilities` of the same texts.
        model: a transformers causal LM on the texts' device.
        texts: what it reads.
        measure: ``tv``: 1 - TV, in [0, 1], TV half the L1 distance of both distributions; ``kl``: minus the divergence
            KL(teacher || model) in nats, at most 0.

    Returns:
        A number per token in the order of the batches, 1 or 0 where both are the same; shape (tokens,).

    Raises:
        TaskError: if logits are not finite.
        ValueError: if the teacher read other texts.
    """
    if [len(rows) for rows in teacher] != [batch.numel() for batch in texts.batches]:
        raise ValueError("teacher: expected log probabilities after each token of the same texts")
    found = []
    for wanted, batch in zip(teacher, texts.batches, strict=True):
        found.append(alike(wanted, _log_probabilities(model, batch), measure))
    return torch.cat(found).double().cpu().numpy() if found else np.zeros(0)  # fetched from the device at once


def alike(wanted: Tensor, given: Tensor, measure: Measure = "tv") -> Tensor:
    """Compare the log probabilities of a teacher with those of another model, as `similarity`.

    Args:
        wanted: the teacher's, float32, shape (tokens, vocabulary).
        given: the other's, likewise.
        measure: as for `similarity`.

    Returns:
        A number per token, float32, shape (tokens,).
    """
    parts = zip(torch.split(wanted, PLACES), torch.split(given, PLACES), strict=True)
    return torch.cat([_alike(*part, measure) for part in parts])


def _log_probabilities(model: Any, batch: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=batch, use_cache=False).logits
    found = logits.float().flatten(0, 1).log_softmax(dim=-1)
    if bool(torch.isnan(found).any()):  # of a logit that is NaN or infinite
        raise TaskError("logits are not finite while allocations are screened")
    return found


def _alike(wanted: Tensor, given: Tensor, measure: Measure) -> Tensor:
    """Compare log probabilities row by row; both of shape (places, vocabulary)."""
    p = wanted.exp()
    if measure == "tv":
        return (1.0 - (p - given.exp()).abs().sum(dim=-1) / 2).clamp(0.0, 1.0)
    return -torch.where(p > 0, p * (wanted - given), 0.0).sum(dim=-1).clamp(min=0.0)


def staged(sequences: Sequence[Sequence[int]], tokens: int) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Part sequences: the first of them, as many as have so many tokens in all, and the others.

    A first one that is longer than that is cut in two.
    """
    first: list[Sequence[int]] = []
    rest = list(sequences)
    left = tokens
    while rest and len(rest[0]) <= left:
        left -= len(rest[0])
        first.append(rest.pop(0))
    if rest and not first:
        first, rest = [rest[0][:tokens]], [rest[0][tokens:], *rest[1:]]
    return first, [sequence for sequence in rest if len(sequence)]


def teacher(recipe: Recipe) -> Recipe:
    """Return the candidate without the prunings that are its own: what it was before its budget was spent.

    Parents that were pruned before they were merged stay so.
    """
    return Cast(merged(recipe), recipe.dtype) if isinstance(recipe, Cast) else merged(recipe)


class Screening:
    """Ranks allocations of one budget by how alike they are to the same merge unpruned.

    It depends on the recipes, the experts and the texts, and on nothing that came before: asked again it chooses the
    same.

    Args:
        section: settings.
        pool: the experts.
        model: the live model that is written into.
        sequences: the texts as token ids, in the order in which they are taken, `section.more` of them at most, at
            least two.
        cache: weights of candidates seen before, or None; nothing is added.

    Attributes:
        tokens: how many tokens models have read in all so far, the teachers among them.
    """

    def __init__(
        self,
        section: ScreeningSection,
        pool: ExpertPool,
        model: Any,
        sequences: Sequence[Sequence[int]],
        cache: WeightCache | None = None,
    ) -> None:
        self._section = section
        self._pool = pool
        self._model = model
        self._cache = cache
        device = next(iter(pool.parameters(model).values())).device
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.tokens = 0
        self._stages = [Texts.of(part, vocabulary, device) for part in staged(sequences, section.tokens)]

    def best(self, recipes: Sequence[Recipe]) -> Screened:
        """Choose one of several recipes with the same teacher; ties go to the first.

        Raises:
            ValueError: if there are none, or they have several teachers.
        """
        start, before = time.perf_counter(), self.tokens
        teachers = {teacher(recipe) for recipe in recipes}
        if len(teachers) != 1:
            raise ValueError(f"recipes: expected allocations over one merge, got {len(teachers)} merges")
        (unpruned,) = teachers
        alive = list(range(len(recipes)))
        sums, places = dict.fromkeys(alive, 0.0), 0
        kept = (len(recipes), self._section.survivors)
        for texts, count in zip(self._stages, kept, strict=True):
            if (count == 1 and places) or not texts.batches:
                break
            alive = sorted(sorted(alive, key=lambda i: -round(sums[i] / max(places, 1), DIGITS))[:count])
            found = self._summed(unpruned, {i: recipes[i] for i in alive}, texts)
            sums = {i: sums[i] + found[i] for i in alive}
            places += texts.tokens
        mean = {i: round(sums[i] / places, DIGITS) for i in sums}
        chosen = max(mean, key=lambda i: (mean[i], -i))
        told = mean[chosen] if math.isfinite(mean[chosen]) else None
        read, seconds = self.tokens - before, time.perf_counter() - start
        return Screened(len(recipes), chosen if told is not None else 0, told, read, seconds)

    def _summed(self, unpruned: Recipe, recipes: dict[int, Recipe], texts: Texts) -> dict[int, float]:
        """Return how alike each recipe is, summed over the places of texts.

        Minus infinity where logits are not finite, and for all where the teacher's are not.
        """
        sums = dict.fromkeys(recipes, 0.0)
        for part in texts.parts():
            try:
                self._write(unpruned)
                self.tokens += part.tokens
                wanted = log_probabilities(self._model, part)
            except (TaskError, WeightsError):
                return dict.fromkeys(recipes, -math.inf)
            for i, recipe in recipes.items():
                if not math.isfinite(sums[i]):
                    continue
                try:
                    self._write(recipe)
                    self.tokens += part.tokens
                    sums[i] += float(similarity(wanted, self._model, part, self._section.measure).sum())
                except (TaskError, WeightsError):
                    sums[i] = -math.inf
        return sums

    def _write(self, recipe: Recipe) -> None:
        materialize(recipe, self._pool, self._model, self._cache, hold=False)
