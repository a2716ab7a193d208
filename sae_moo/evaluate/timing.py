"""Measuring what a token costs on this machine: small models of the base's own sizes, with random weights."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sae_moo.errors import InputError
from sae_moo.evaluate.costs import CostTable, fitted
from sae_moo.evaluate.hardware import meter_of, name_of
from sae_moo.evaluate.passes import takes
from sae_moo.experts.anatomy import anatomy
from sae_moo.experts.built import built_model
from sae_moo.experts.layers import with_layers
from sae_moo.experts.layout import dtype_of, longest_input
from sae_moo.experts.live import parsed_config
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.widths import narrower, reads_one_for_each, said
from sae_moo.files.user_cache import keep, kept
from sae_moo.recipe import BASE
from sae_moo.recipe.groups import in_block

log = logging.getLogger(__name__)

KIND = "costs"
ENOUGH = 256 * 2**20
"""Bytes of blocks that are measured at least, of models that have so many: fewer would stay in a processor's cache,
where the blocks of a whole model do not."""
SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of a block's units that are left; of the last a single unit is."""
ROUNDS = range(5, 60)
"""How often everything is timed, in turns: at least, and less than; the fastest of each counts."""
SECONDS = 15.0
"""After which it is not timed again, once that was often enough."""
SETTLED, SLIGHT = 12, 0.01
"""Nor once so many rounds made nothing faster by more than this share."""
USUAL_LENGTH = 256


def cost_table(
    pool: ExpertPool,
    dtype: str,
    device: str,
    versions: str,
    *,
    mode: Literal["decode", "prompt"] = "decode",
    batch: int = 1,
    length: int | None = None,
) -> CostTable:
    """Return what a token costs of models like the base here: measured, unless this machine did that before.

    Args:
        pool: the experts; the base's sizes count.
        dtype: of the live model.
        device: where it lives.
        versions: of the software that computes.
        mode: ``decode``: a token of every row is computed after those that stand before it; ``prompt``: all tokens of
            a row at once.
        batch: rows at once.
        length: tokens that stand before, or of a row; None: `USUAL_LENGTH`, or as many as the base takes.

    Raises:
        InputError: if the base takes fewer tokens, or transformers cannot build such models.
    """
    origin = measured_by(pool, dtype, device, versions, mode=mode, batch=batch, length=length)
    facts = [pool.checkpoints[BASE].config, origin, len(_blocks(pool))]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    found = _kept(name)
    if found is None:
        log.info("measuring what a token costs, once on this machine: %s", ", ".join(origin.values()))
        table = measured(pool, dtype, device, origin, mode=mode, batch=batch, length=_length(pool, mode, length))
        found = _kept(name)  # another process may have been the first
        if found is None:
            keep(KIND, name, json.dumps(table.document()))
            found = table
    return found


def measured_by(
    pool: ExpertPool, dtype: str, device: str, versions: str, *, mode: str, batch: int, length: int | None
) -> dict[str, str]:
    """Return what a table is measured by, in words, by name; see `cost_table`."""
    tokens = _length(pool, mode, length)
    doing = f"writing after {tokens} tokens" if mode == "decode" else f"reading {tokens} tokens"
    return {
        "work": f"{doing}, {batch} at once, {dtype}",
        "machine": platform.node(),
        "device": f"{name_of(device)}, {torch.get_num_threads()} threads" if device == "cpu" else name_of(device),
        "versions": versions,
    }


def measured(
    pool: ExpertPool, dtype: str, device: str, origin: Mapping[str, str], *, mode: str, batch: int, length: int
) -> CostTable:
    """Measure what a token costs.

    Models with few blocks, and models whose blocks are narrower, take turns; they share the memory of one. The largest
    has half the bytes of `ENOUGH` and more in its blocks, or all blocks of the base.

    Raises:
        InputError: if transformers cannot build such models.
    """
    checkpoint = pool.checkpoints[BASE]
    parsed, blocks = parsed_config(checkpoint.folder) or {}, _blocks(pool)
    size = sum(blocks.values()) * dtype_of(dtype).itemsize / len(blocks)
    many = max(2, min(len(blocks), math.ceil(ENOUGH / size)))

    def config(count: int, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        order = [i * len(blocks) // count for i in range(count)]
        return {**with_layers(checkpoint.config, parsed, order), **(changes or {})}

    whole = built_model(config(many), dtype_of(dtype), device)
    models: dict[tuple[str, int], Any] = {("blocks", many): whole}
    models["blocks", many // 2] = _like(config(many // 2), whole, dtype, device)
    units = _units(pool)
    for scope, count in units.items():
        for left in sorted({max(1, round(share * count)) for share in SHARES} - {count}):
            changes = narrower(pool, scope, left)
            if changes is not None and said({**checkpoint.config, **changes}):
                models[scope, left] = _like(config(many, changes), whole, dtype, device)
    best = fastest({key: forward(model, mode, batch, length) for key, model in models.items()}, device)
    tokens = batch * (length if mode == "prompt" else 1)
    times = {key: seconds / tokens for key, seconds in best.items()}
    widths = {
        scope: {left: seconds for (what, left), seconds in times.items() if what == scope}
        for scope in units
        if any(what == scope for what, _ in times)
    }
    counted = {left: seconds for (what, left), seconds in times.items() if what == "blocks"}
    outside, block, rows = fitted(counted, widths, units)
    rows = {
        scope: replace(row, each=reads_one_for_each(pool, scope), able=_able(pool, scope))
        for scope, row in rows.items()
    }
    return CostTable(len(blocks), outside, block, rows, dict(origin))


def _blocks(pool: ExpertPool) -> dict[int, int]:
    """Return the weights of each block, by its group."""
    found: dict[int, int] = {}
    for info in pool.tensors:
        if in_block(pool.groups[info.group]):
            found[info.group] = found.get(info.group, 0) + info.numel
    if not found:
        raise InputError("speed: the base has no blocks")
    return found


def _units(pool: ExpertPool) -> dict[str, int]:
    """Return the units of a block, by the scopes that can remove some of them from the base."""
    found = {}
    for scope in ("neurons", "heads"):
        try:
            found[scope] = anatomy(pool, scope).units
        except InputError:  # told by what prunes by that scope
            continue
    return {scope: count for scope, count in found.items() if count > 1}


def _able(pool: ExpertPool, scope: str) -> tuple[int, ...]:
    """Return the numbers of units that a ``config.json`` can say; empty where it can say any."""
    if scope == "neurons":
        return ()
    config = pool.checkpoints[BASE].config
    count = anatomy(pool, scope).units
    rows = {left: narrower(pool, scope, left) for left in range(1, count)}
    return (*(left for left, row in rows.items() if row is not None and said({**config, **row})), count)


def _like(config: Mapping[str, Any], whole: Any, dtype: str, device: str) -> Any:
    """Return a smaller model that takes no memory: its tensors lie in those of the whole one, whatever they hold."""
    model = built_model(config, dtype_of(dtype), "meta")
    for own, given, kind in (
        (model.named_parameters, whole.named_parameters, "_parameters"),
        (model.named_buffers, whole.named_buffers, "_buffers"),
    ):
        held, made = dict(given(remove_duplicate=False)), dict[int, Tensor]()
        for name, tensor in list(own(remove_duplicate=False)):
            place, _, leaf = name.rpartition(".")
            if name not in held or held[name].numel() < tensor.numel():
                return built_model(config, dtype_of(dtype), device)
            part: Tensor = held[name].detach().reshape(-1)[: tensor.numel()].view(tensor.shape)
            made.setdefault(id(tensor), nn.Parameter(part, requires_grad=False) if kind == "_parameters" else part)
            getattr(model.get_submodule(place), kind)[leaf] = made[id(tensor)]  # what is tied stays so
    return model


def forward(model: Any, mode: str, batch: int, length: int) -> Callable[[], Callable[[], object]]:
    """Return what makes one forward pass ready; what that returns is timed."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    tokens = torch.arange(batch * length, device=device).reshape(batch, length)
    tokens %= model.get_input_embeddings().weight.shape[0]
    last = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}  # as where models write

    def run(read: Tensor, cache: Any) -> object:
        return model(input_ids=read, use_cache=True, **{name: cache}, **last)

    name, before = "cache" if takes(model, "cache") else "past_key_values", DynamicCache(config=model.config)
    if mode == "decode":
        with torch.inference_mode():
            run(tokens, before)
        tokens = tokens[:, :1]

    def ready() -> Callable[[], object]:
        cache = deepcopy(before)  # a pass writes into it
        return lambda: run(tokens, cache)

    return ready


@torch.inference_mode()
def fastest(
    passes: Mapping[tuple[str, int], Callable[[], Callable[[], object]]], device: str
) -> dict[tuple[str, int], float]:
    """Return the seconds that the fastest forward pass of each took.

    On a CPU these are seconds in which the calling thread computed, which takes its part in all that is computed: what
    other programs take of a busy machine does not count.
    """
    meter = meter_of(device)
    best = dict.fromkeys(passes, math.inf)
    begun, gained = time.perf_counter(), 0
    for done in range(ROUNDS.stop):
        if done == 1:  # the first is not counted: everything is laid out then
            best = dict.fromkeys(passes, math.inf)
        if done > ROUNDS.start and (time.perf_counter() - begun > SECONDS or done - gained > SETTLED):
            break
        for key, ready in passes.items():
            run = ready()
            if meter is None:
                start = time.thread_time()
                run()
                seconds = time.thread_time() - start
            else:
                seconds = meter.cost(run).seconds
            if seconds < (1 - SLIGHT) * best[key]:
                gained = done
            best[key] = min(best[key], seconds)
    return best


def _length(pool: ExpertPool, mode: str, length: int | None) -> int:
    """Return how many tokens a row has, or stand before the one that is written."""
    longest = longest_input(pool.checkpoints[BASE].config)
    most = math.inf if longest is None else longest - (mode == "decode")
    if length is None:
        return int(max(1, min(USUAL_LENGTH, most)))
    if length > most:
        raise InputError(f"speed.length: expected at most {most:g}, as many as the base takes, got {length}")
    return length


def _kept(name: str) -> CostTable | None:
    text = kept(KIND, name)
    try:
        return None if text is None else CostTable.read(json.loads(text))
    except (InputError, ValueError, RecursionError):
        return None  # damaged
