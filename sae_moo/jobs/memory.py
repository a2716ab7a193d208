"""What the workers of a search take of memory, each with a live model and a cache of its own, beside what there is."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_moo.jobs.bench import Bench
from sae_moo.jobs.executors import cluster_of, workers_of

log = logging.getLogger(__name__)

HERE = "this machine"
LIMITS = tuple(map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")))
"""Where Linux says how much a container may have."""


@dataclass(frozen=True, slots=True)
class Taking:
    """What workers take of one memory, without what merging and scoring need for a while.

    Args:
        where: whose it is, in words.
        workers: how many have a share of it.
        model: bytes of the live model of each that lie there.
        cache: bytes of weights that each may keep there, at most.
        there: how many bytes there are; None: it is not known.
    """

    where: str
    workers: int
    model: int
    cache: int
    there: int | None

    @property
    def all(self) -> int:
        """Bytes that all of them may take together."""
        return self.workers * (self.model + self.cache)

    @property
    def too_much(self) -> bool:
        """Whether that is more than there is."""
        return self.there is not None and self.all > self.there

    @property
    def words(self) -> str:
        """What each takes, what all do, what there is, and what to change where that is too little."""
        parts = [f"a model of {_size(self.model)}"] if self.model else []
        parts += [f"a cache of up to {_size(self.cache)}"] if self.cache else []
        many = f"{self.workers} worker{'' if self.workers == 1 else 's'}"
        each = f"{many}{' each' if self.workers > 1 else ''} with {' and '.join(parts)}"
        most = "up to " if self.cache else ""
        if self.there is None:
            return f"{each}: {most}{_size(self.all)} on {self.where}"
        taken = f"{each}: {most}{_size(self.all)} of the {_size(self.there)} of {self.where}"
        return taken if not self.too_much else f"{taken}, too little; there is room with {', or '.join(self._cures())}"

    def _cures(self) -> Iterator[str]:
        """Yield what would have room or take less: fewer workers, smaller caches, smaller models."""
        assert self.there is not None
        fewer, left = self.there // (self.model + self.cache), self.there // self.workers - self.model
        if fewer:
            yield f"executor.workers: {fewer}" if self.where == HERE else f"executor.workers: {fewer} for each GPU"
        if self.cache and left >= 0:
            yield f"models.cache_gib: {math.floor(left / 2**30 * 100) / 100:g}"
        if self.model:
            yield "a smaller models.dtype"


def takings(bench: Bench) -> tuple[Taking, ...]:
    """Return what the configured workers take of the memory that is known of; nothing where this process evaluates.

    On a GPU that one worker has to itself there is what there is without workers; caches take of a GPU what is free,
    and of this machine's memory the rest.
    """
    section, device = bench.config.executor, bench.device
    if section.kind == "local":
        return ()
    workers, model, cache = workers_of(section, device), bench.model_bytes, _cache(bench)
    on_gpu = torch.device(device).type == "cuda"
    if section.address is not None:
        return (Taking("the machines of the cluster", workers, 0 if on_gpu else model, cache, None),)
    here = Taking(HERE, workers, 0 if on_gpu else model, cache, memory())
    shared = _sharing(bench, workers) if on_gpu else 1
    taken = [here] if here.all else []
    if shared > 1:
        taken.append(Taking("a GPU", shared, model, 0, torch.cuda.get_device_properties(device).total_memory))
    return tuple(taken)


def tell_too_much(bench: Bench) -> None:
    """Warn where the configured workers may take more memory than there is."""
    for taking in takings(bench):
        if taking.too_much:
            log.warning("memory: %s", taking.words)


def memory() -> int | None:
    """Return how many bytes of memory this process's machine has, or its container where that has less."""
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # this system has no such numbers
        return None
    limits = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return min([most, *(int(limit) for limit in limits if limit.isdecimal())])  # "max" is none


def _cache(bench: Bench) -> int:
    """Return how many bytes of weights a worker keeps at most: no more than what a whole search evaluates."""
    return min(bench.cache_bytes, bench.model_bytes * bench.config.search.trials)


def _sharing(bench: Bench, workers: int) -> int:
    """Return how many workers share the GPU that most have."""
    section = bench.config.executor
    if section.kind == "ray":
        gpus = cluster_of(section, bench.device).gpus
        return min(workers, int(1 / gpus + 1e-6)) if 0 < gpus < 1 else 1
    return -(-workers // torch.cuda.device_count()) if bench.device == "cuda" else workers


def _size(count: int) -> str:
    """Return a number of bytes in words."""
    if count < 2**30:
        return f"{count / 2**20:,.1f} MiB"
    return f"{count / 2**30:,.1f} GiB"
