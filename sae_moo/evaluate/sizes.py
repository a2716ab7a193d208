"""How many tokens are computed at once: by rule on a CPU, measured on other devices when a model is first asked.

On a GPU other numbers of rows may take other kernels, which round otherwise: what was chosen is kept for a run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sae_moo.errors import out_of_memory
from sae_moo.evaluate.hardware import Meter, TokensAtOnce, meter_of
from sae_moo.files.user_cache import keep, kept

log = logging.getLogger(__name__)

KIND = "batches"
SHARE = 0.5
"""Of the memory that is free when it is measured, what a pass may take: parents and experts come to lie beside it."""
SECONDS = 3.0
"""For how long sizes are tried, in all."""
TIMED = 3
"""How often each is timed, after a first time that is not; the fastest counts."""
MARGIN = 0.03
"""By which part a larger size must be faster, a token, to be taken."""


class BatchSizes:
    """How many tokens a run computes at once, by what is computed.

    Args:
        device: where models live.
        chosen: what was chosen before, by `TokensAtOnce.what`: it is not measured again.
        tell: told of all that is chosen whenever that changes.
        meter: looks at the device; None takes the device's own, if it has one.
        name: under which the user's cache folder keeps what is measured, so that later runs of the same models and
            tasks round alike; None: it is not kept.

    Attributes:
        chosen: what is chosen by now; nothing of a CPU unless its memory ran out.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        chosen: Mapping[str, int] | None = None,
        *,
        tell: Callable[[Mapping[str, int]], None] = lambda chosen: None,
        meter: Meter | None = None,
        name: str | None = None,
    ) -> None:
        self.chosen = dict(chosen or {})
        self.meter = meter_of(device) if meter is None else meter
        self._given = frozenset(self.chosen)
        self._device = device
        self._tell = tell
        self._name = name
        if not self.chosen and self.meter is not None:
            self.chosen = _kept(name)
            if self.chosen:
                tell(self.chosen)

    def of(self, kind: TokensAtOnce) -> int | None:
        """Return how many tokens are computed at once; None: that is to be measured."""
        return self.chosen.get(kind.what, kind.on(self._device) if self.meter is None else None)

    def first(self, kind: TokensAtOnce) -> int:
        """Return how many are safe as long as nothing was measured."""
        return self.of(kind) or kind.least

    def choose(self, kind: TokensAtOnce, tokens: int) -> None:
        """Take what was measured from now on."""
        self._set(kind, tokens)
        if self._name is not None:
            keep(KIND, self._name, json.dumps(self.chosen))

    def halve(self, kind: TokensAtOnce, tokens: int, used: int) -> int:
        """Take half from now on, in this run: memory ran out.

        Args:
            kind: of what.
            tokens: how many were allowed.
            used: how many there were when it ran out.
        """
        left = kind.halved(tokens, used)
        if kind.what in self._given:
            log.warning("what this study scored before was computed with %d: last digits may differ", tokens)
        self._set(kind, left)
        return left

    def _set(self, kind: TokensAtOnce, tokens: int) -> None:
        self.chosen[kind.what] = tokens
        self._tell(self.chosen)


def _kept(name: str | None) -> dict[str, int]:
    text = None if name is None else kept(KIND, name)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}  # damaged
    whole = isinstance(found, dict) and all(type(tokens) is int and tokens > 0 for tokens in found.values())
    return found if whole else {}


@dataclass(frozen=True, slots=True)
class Work:
    """Some of what is to be computed, laid out with a number of tokens at once.

    Args:
        run: computes it.
        tokens: how many it reads, padding left out.
        largest: tokens of its largest pass, padding included.
        passes: into how many passes everything falls.
    """

    run: Callable[[], object]
    tokens: int
    largest: int
    passes: int


def fastest(work_of: Callable[[int], Work], kind: TokensAtOnce, meter: Meter) -> int:
    """Return how many tokens at once take the least time a token, of `kind.least`, twice as many, and so on.

    It is not tried further once a larger number is no faster, would take more memory or time than may be spent
    (`SHARE`, `SECONDS`), or puts nothing more together. Where not even the least fits into memory, it is half of that,
    and so on, and nothing larger.

    Args:
        work_of: number of tokens at once -> what to try it on.
        kind: of what.
        meter: looks at the device.
    """
    room, spent, most = SHARE * meter.free(), 0.0, kind.most
    tried: dict[int, float] = {}  # tokens at once -> seconds a token
    size, before, before_seconds, before_bytes = kind.least, None, 0.0, 0
    while size <= most:
        work = work_of(size)
        if before is not None and (
            (work.passes, work.largest) == (before.passes, before.largest)
            or before_bytes * work.largest / before.largest > room
            or spent + before_seconds * work.tokens / before.tokens > SECONDS
        ):
            break
        try:
            first = meter.cost(work.run)
            spent += first.seconds
            if spent + TIMED * first.seconds > SECONDS:
                break
            costs = [meter.cost(work.run) for _ in range(TIMED)]
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            costs = []
        if not costs:
            if tried or size == 1:
                break
            size = most = kind.halved(size, work.largest)
            continue
        spent += sum(cost.seconds for cost in costs)
        tried[size] = min(cost.seconds for cost in costs) / work.tokens
        if tried[size] > min(tried.values()):
            break
        before, before_bytes = work, max(cost.bytes for cost in (first, *costs))
        before_seconds = first.seconds + sum(cost.seconds for cost in costs)
        size *= 2
    meter.tidy()
    best = min(tried, default=size)
    for size, seconds in tried.items():
        if seconds < (1 - MARGIN) * tried[best]:
            best = size
    told = ", ".join(f"{size}: {seconds * 1e6:.3g}" for size, seconds in tried.items())
    log.info("%s of at most %d tokens (microseconds a token with %s)", kind.what, best, told or "nothing measured")
    return best


def fitting(run: Callable[[], object], tokens: int, kind: TokensAtOnce, meter: Meter) -> int:
    """Return how many tokens at once memory has room for: a power of two from `kind.least` to `kind.most`.

    Args:
        run: computes a few.
        tokens: how many, padding included.
        kind: of what.
        meter: looks at the device.
    """
    room = SHARE * meter.free()
    each = max(meter.cost(run).bytes, 1) / tokens
    fit = 1 << int(math.log2(max(room / each, 1)))
    best = min(max(fit, kind.least), kind.most)
    log.info("%s of at most %d tokens, %.3g MiB each thousand", kind.what, best, each * 1000 / 2**20)
    return best
