"""Activation norms for `wanda`: one pass of one named model over calibration texts, before any search.

The norms are those of one model of the pool, not of the candidate that is pruned: a candidate's own would cost forward
passes for every pruning of every lineage, and replaying a recipe would need its texts. Sun et al. 2023 prune one model
with its own norms, block by block, each seeing what pruning left of those before it; here all come from one pass over
the dense model. A recipe names norms by the digest of their content, so that its digest still means one set of weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sae_moo.errors import InputError, nearest
from sae_moo.experts.layout import content_digest
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import user_cache
from sae_moo.materialization.into_model import materialize
from sae_moo.materialization.linear import linear_layers
from sae_moo.materialization.texts import load_texts, save_texts, sequences_of
from sae_moo.recipe import BASE, Expert, Prune, Recipe, walk

log = logging.getLogger(__name__)

TOKENS = 4096
BATCH_TOKENS = 2048
"""Tokens of a forward pass; a longer single sequence is its own batch."""
_METHOD = 1  # raised when the same texts would give other norms

Norms = Mapping[str, Tensor]


def calibrate(
    pool: ExpertPool,
    texts: Sequence[str | Sequence[int]],
    tokens: int = TOKENS,
    model: str = BASE,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
) -> str:
    """Give a pool the L2 norm of every input feature of its prunable weights over texts.

    Texts are taken in order, cut into sequences the model can take, until there are `tokens` tokens. Sums of squares
    are float64; one batch of equally long sequences (no padding) is in memory. Costs a live model and forward passes
    the first time: norms are kept in the user's cache folder, under the model's fingerprint, the token ids and the
    settings. Another kind of device or number of threads may round them differently, which is another digest.

    Args:
        pool: the experts; its `norms` are added to.
        texts: what the model reads: texts, to which the tokenizer adds what it does by default, or token ids.
        tokens: how many tokens of it, at most; at least 2.
        model: name of a model of the pool.
        dtype: dtype of the live model.
        device: where it lives.

    Returns:
        The norms' digest, for ``Prune(..., criterion="wanda", calibration=digest)``.

    Raises:
        InputError: for texts that give no sequence of two tokens, an unknown model, or norms that are not finite.
    """
    if model not in pool.names:
        raise InputError(
            f"calibration: no model named {model!r}{nearest(model, pool.names)}; there are {', '.join(pool.names)}"
        )
    config = pool.checkpoints[BASE].config
    sequences = sequences_of(pool, texts, tokens)
    settings = [_METHOD, pool.fingerprints[model], config, dtype, torch.device(device).type, sequences]
    stamp = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    norms = _remembered(stamp)
    if norms is None:
        live = pool.live_model(dtype, device)
        if model != BASE:
            materialize(Expert(model), pool, live)
        norms = activation_norms(pool, live, sequences, device)
        digest = add_norms(pool, norms)
        _remember(stamp, norms)
    else:
        digest = add_norms(pool, norms)
    count = sum(len(sequence) for sequence in sequences)
    log.info("calibration: activation norms of %s over %d tokens in %d sequences", model, count, len(sequences))
    return digest


@torch.inference_mode()
def activation_norms(
    pool: ExpertPool, model: Any, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the L2 norm of every input feature of the linear layers whose weights are prunable, over all tokens.

    Args:
        pool: the experts.
        model: a live model of theirs.
        sequences: token ids.
        device: where the model lives.

    Raises:
        InputError: if the model does not know a token.

    Returns:
        Tensor name -> float32 norms, shape (inputs,), on the CPU; layers that no token reached are left out.
    """
    batches: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        batches.setdefault(len(sequence), []).append(sequence)
    known = model.get_input_embeddings().weight.shape[0]
    highest = max(max(sequence) for sequence in sequences)
    if highest >= known:
        raise InputError(f"calibration: expected token ids below {known}, got {highest}")
    body = model.base_model  # without the head: logits are not needed
    with _summed(pool, model) as sums:
        for length in sorted(batches):
            rows = max(1, BATCH_TOKENS // length)
            for start in range(0, len(batches[length]), rows):
                part = batches[length][start : start + rows]
                body(input_ids=torch.tensor(part, device=device), use_cache=False)
    return {name: total.sqrt().float().cpu() for name, total in sums.items()}


@contextmanager
def _summed(pool: ExpertPool, model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While entered, sum up squares of what linear layers read; tensor name -> float64, shape (inputs,)."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            features = args[0].shape[-1]
            squares = args[0].detach().reshape(-1, features).double().square().sum(dim=0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    layers = linear_layers(pool, model)
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def add_norms(pool: ExpertPool, norms: Norms) -> str:
    """Give a pool activation norms, from `calibrate` or one's own; return their digest.

    Args:
        pool: the experts; its `norms` are added to.
        norms: tensor name -> norm of each input feature, float32, finite and not negative.

    Raises:
        InputError: naming a tensor that the pool lacks, or whose norms are not such numbers.
    """
    own = {info.name for info in pool.tensors}
    for name, row in norms.items():
        if name not in own:
            raise InputError(f"calibration: norms for {name}, which is no tensor of the base{nearest(name, own)}")
        if row.dtype != torch.float32 or row.dim() != 1:
            raise InputError(f"calibration: expected a row of float32 norms for {name}, got {row.dtype} {row.shape}")
        wrong = ~(torch.isfinite(row) & (row >= 0))
        if wrong.any():
            raise InputError(
                f"calibration: expected finite norms of at least 0, {int(wrong.sum())} of {len(row)} of {name} are "
                f"not, the first is {row[wrong][0].item()}: the model's activations overflow or are NaN"
            )
    digest = norms_digest(norms)
    pool.norms[digest] = dict(norms)
    return digest


def norms_digest(norms: Norms) -> str:
    """Return the hexadecimal digest of the content of norms."""
    whole = hashlib.sha256()
    for name in sorted(norms):
        row = norms[name].contiguous()
        content = content_digest(row)
        whole.update(json.dumps([name, len(row), content]).encode())
    return whole.hexdigest()


def calibrations_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the digests of the norms that a recipe names, sorted."""
    named = {node.calibration for node in walk(recipe) if isinstance(node, Prune)}
    return tuple(sorted(digest for digest in named if digest is not None))


def file_name(digest: str) -> str:
    """Return the name of the file that norms are kept in."""
    return f"calibration-{digest[:16]}.safetensors"


def save_calibration(recipe: Recipe, pool: ExpertPool, folder: Path) -> None:
    """Write norms and texts that a recipe names into a folder, one file per digest; nothing if it names none."""
    save_texts(recipe, pool, folder)
    for digest in calibrations_of(recipe):
        save_file(dict(pool.norms[digest]), folder / file_name(digest), metadata={"digest": digest})


def load_calibration(recipe: Recipe, pool: ExpertPool, folder: Path) -> None:
    """Give a pool norms and texts that a recipe names, from a folder or the user's cache; those not found are left out.

    Raises:
        InputError: if a file holds others than its name says.
    """
    load_texts(recipe, pool, folder)
    for digest in calibrations_of(recipe):
        if digest in pool.norms:
            continue
        for file in (folder / file_name(digest), user_cache.folder("calibrations") / file_name(digest)):
            norms = _read(file)
            if norms is not None and norms_digest(norms) == digest:
                add_norms(pool, norms)
                break
            if norms is not None and file.parent == folder:
                raise InputError(f"{file}: expected the activation norms {digest}, it holds {norms_digest(norms)}")


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def _remembered(stamp: str) -> Norms | None:
    """Return the norms kept under a stamp: a small file that holds the digest, beside the norms themselves."""
    digest = user_cache.kept("calibrations", stamp)
    norms = None if digest is None else _read(user_cache.folder("calibrations") / file_name(digest))
    return norms if norms is not None and norms_digest(norms) == digest else None


def _remember(stamp: str, norms: Norms) -> None:
    digest = norms_digest(norms)
    user_cache.keep(
        "calibrations", file_name(digest), lambda path: save_file(dict(norms), path, metadata={"digest": digest})
    )
    user_cache.keep("calibrations", stamp, digest)
