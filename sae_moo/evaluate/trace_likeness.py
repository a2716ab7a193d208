"""How alike two models answer and compute: functional features of a pair, from what each left of the same probes.

All pairs are compared together: of a part of the places the distributions of all models are in memory (`PART_BYTES`),
of a layer the hidden states of all, so that each trace is read once however many pairs there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_moo.evaluate.traces import Trace
from sae_moo.materialization.likeness import ALL, REGIONS, SIDES, Pair, rounded, sides
from sae_moo.recipe import BASE
from sae_moo.recipe.groups import THIRDS, thirds

Numbers = NDArray[np.float64]

PART_BYTES = 1 << 27
"""Log probabilities of all models that are looked at together, in float32; their exponentials take as much."""
LEAST = -1e4
"""Log probability that stands for none: a divergence stays a number, of a size that no other has."""
ALIGNED = 256
"""Places over which hidden states are aligned by CKA; it takes its square for each layer of a model."""

_WAYS = ("forward", "backward")
_STATISTICS = ("mean", "median", "q90")
_BY_REGION = ("hidden_cosine", "cka", "attention_cosine")
_BY_MODEL = ("log_likelihood", "entropy", "drift")
FUNCTIONAL = (
    *(f"kl_{way}_{statistic}" for way in _WAYS for statistic in _STATISTICS),
    "argmax_agreement",
    *(f"{name}_{region}" for name in _BY_REGION for region in REGIONS),
    *(f"{name}_{side}" for name in _BY_MODEL for side in SIDES),
)
"""Names of the functional features, the same for every architecture.

* ``kl_forward``: KL(first || second) of the next token's distributions in nats, over the places that the traces keep:
  mean, median and 0.9-quantile; ``kl_backward``: KL(second || first).
* ``argmax_agreement``: share of all tokens after which both find the same one the likeliest.
* ``hidden_cosine``: mean cosine of the hidden states after a block, over places and the blocks of a third.
* ``cka``: linear CKA of the same (Kornblith et al. 2019, arXiv 1905.00414, eq. 3) over `ALIGNED` places at most, mean
  over the blocks of a third. It does not change if the states of one model are rotated or scaled.
* ``attention_cosine``: mean cosine of the attention patterns of a head, over places but the first of a text, heads and
  the attention layers of a third; NaN where models have none, or do not give them.
* ``log_likelihood``: mean log likelihood of the probes' tokens in nats; ``entropy``: mean entropy of the next token.
* ``drift``: mean KL(base || model) over the places that the traces keep.
"""


@torch.inference_mode()
def trace_likenesses(traces: Mapping[str, Trace], pairs: Iterable[Pair]) -> dict[Pair, dict[str, float]]:
    """Return the functional features of ordered pairs of models.

    Args:
        traces: model -> its trace, all of the same probes; the base's among them.
        pairs: names, first and second.

    Returns:
        Pair -> feature, by the names in `FUNCTIONAL`, rounded; NaN where there is none.

    Raises:
        ValueError: if the traces are not of the same probes.
    """
    names = list(traces)
    shapes = {tuple((key, tuple(each.shape)) for key, each in sorted(trace.items())) for trace in traces.values()}
    if len(shapes) > 1:
        raise ValueError("traces: expected those of the same probes by models of one architecture")
    held = list(traces.values())
    divergence = _divergences([trace["log_probabilities"] for trace in held])
    agreement = _agreement([trace["argmax"] for trace in held])
    square = np.full((len(names), len(names)), math.nan)
    by_region = {f"{name}_{region}": square for name in _BY_REGION for region in REGIONS}
    if "hidden" in held[0]:
        by_region |= _by_depth("hidden_cosine", _hidden_cosines([trace["hidden"] for trace in held]))
        by_region |= _by_depth("cka", _aligned([trace["hidden"] for trace in held]))
    patterns = sorted(key for key in held[0] if key.startswith("attention."))
    if patterns:
        by_region |= _by_depth(
            "attention_cosine", _attention_cosines([[trace[key] for key in patterns] for trace in held])
        )
    own = {
        "log_likelihood": [float(trace["log_likelihood"].double().mean()) for trace in held],
        "entropy": [float(trace["entropy"].double().mean()) for trace in held],
        "drift": [float(divergence[names.index(BASE), i].mean()) for i in range(len(names))],
    }
    found = {}
    for pair in pairs:
        i, j = (names.index(name) for name in pair)
        features: dict[str, float] = {"argmax_agreement": agreement[i, j]}
        for way, row in zip(_WAYS, (divergence[i, j], divergence[j, i]), strict=True):
            statistics = (row.mean(), np.median(row), np.quantile(row, 0.9))
            features |= {f"kl_{way}_{name}": float(value) for name, value in zip(_STATISTICS, statistics, strict=True)}
        features |= {name: matrix[i, j] for name, matrix in by_region.items()}
        for name, values in own.items():
            features |= sides(name, values[i], values[j])
        found[pair] = {name: rounded(features[name]) for name in FUNCTIONAL}
    return found


def _divergences(distributions: Sequence[Tensor]) -> Numbers:
    """Return KL(one || other) at every place, in nats; float64, shape (models, models, places), 0 on the diagonal."""
    places, vocabulary = distributions[0].shape
    rows = max(1, PART_BYTES // (4 * vocabulary * len(distributions)))
    parts = []
    for start in range(0, places, rows):
        logs = torch.stack([each[start : start + rows].float() for each in distributions], dim=1).clamp_(min=LEAST)
        crossed = logs.exp() @ logs.mT  # places x models x models: minus the cross entropies
        parts.append((crossed.diagonal(dim1=1, dim2=2)[:, :, None] - crossed).clamp(min=0).permute(1, 2, 0))
    divergences: Numbers = torch.cat(parts, dim=2).double().numpy()
    return divergences


def _agreement(chosen: Sequence[Tensor]) -> Numbers:
    every = torch.stack(list(chosen))
    shares: Numbers = torch.stack([(every == row).double().mean(dim=1) for row in every]).numpy()
    return shares


def _by_depth(name: str, layers: Sequence[Numbers]) -> dict[str, Numbers]:
    """Return the means of what was found in each layer over thirds of the depth, and over all."""
    parts = dict(zip(THIRDS, thirds(len(layers)), strict=True)) | {ALL: range(len(layers))}
    return {f"{name}_{region}": np.mean([layers[i] for i in part], axis=0) for region, part in parts.items()}


def _hidden_cosines(hidden: Sequence[Tensor]) -> list[Numbers]:
    """Return the mean cosine of each two models in each layer; float64, shape (models, models) each."""
    return [_cosines(torch.stack([each[layer].float() for each in hidden])) for layer in range(len(hidden[0]))]


def _cosines(vectors: Tensor) -> Numbers:
    """Return the mean cosines of vectors, shape (models, places, size), of each two models over places."""
    turned = torch.nn.functional.normalize(vectors, dim=-1).transpose(0, 1)
    cosines: Numbers = (turned @ turned.mT).double().mean(dim=0).numpy()
    return cosines


def _aligned(hidden: Sequence[Tensor]) -> list[Numbers]:
    """Return the linear CKA of each two models in each layer; float64, shape (models, models) each."""
    places = hidden[0].shape[1]
    chosen = torch.arange(min(ALIGNED, places)) * places // min(ALIGNED, places)
    found = []
    for layer in range(len(hidden[0])):
        likenesses = []
        for each in hidden:
            states = each[layer][chosen].double()
            states -= states.mean(dim=0)
            likenesses.append((states @ states.T).flatten())  # of each two places; HSIC is a product of these
        products = torch.stack(likenesses) @ torch.stack(likenesses).T
        lengths = products.diagonal().sqrt()
        found.append((products / torch.outer(lengths, lengths)).numpy())
    return found


def _attention_cosines(patterns: Sequence[Sequence[Tensor]]) -> list[Numbers]:
    """Return the mean cosine of the attention patterns of each two models in each layer that has them.

    Args:
        patterns: of each model, its batches.
    """
    found = []
    for layer in range(len(patterns[0][0])):
        total, count = np.zeros((len(patterns), len(patterns))), 0
        for batch in zip(*patterns, strict=True):
            rows = torch.stack([each[layer][:, :, 1:].flatten(0, 2).float() for each in batch])
            total += _cosines(rows) * rows.shape[1]
            count += rows.shape[1]
        found.append(total / count)
    return found
