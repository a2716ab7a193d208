"""What a candidate costs on a device, beside the copy of the same bytes and beside others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from card_counts import Counts, counted, synchronize
from card_models import norms
from card_peers import Peers
from card_recipes import MOST_WAITS, STREAMED, STREAMED_GOAL, TINY_GOAL, Line, candidates, lines
from torch import Tensor

import sae_moo as sm
from sae_moo.experts.pool import ExpertPool

MIB = 2**20
PIECE = 512 * MIB
"""Bytes of page-locked memory that the copy to the device goes through, over and over."""


@dataclass
class Deadline:
    """How long a part of the study may take.

    Args:
        seconds: from now on.
    """

    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of an action and of what it has put on the device, in milliseconds."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def median(
    action: Callable[[], object], device: torch.device, rounds: int, seconds: float = 3.0, warm: bool = False
) -> float:
    """Return the median of some rounds in milliseconds, fewer where they take too many seconds.

    Args:
        action: what is done.
        device: where.
        rounds: how often at most.
        seconds: after which no round begins.
        warm: whether it was done before; if not, a round that is not counted goes before the others.
    """
    if not warm:
        timed(action, device)
    found: list[float] = []
    while len(found) < rounds and (not found or sum(found) < 1e3 * seconds):
        found.append(timed(action, device))
    return statistics.median(found)


class Floor:
    """Copies within a device: what has to be moved at least, every operand read once and one model written.

    Args:
        size: bytes of a model.
        device: where.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self._source, self._target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        self._known: dict[int, float] = {}

    def milliseconds(self, read: int, rounds: int) -> float:
        """Return the time that moving `read` operands and a model takes, measured once."""
        if read not in self._known:
            self._known[read] = median(lambda: self._copy((read + 1) / 2), self._device, rounds)
        return self._known[read]

    def _copy(self, models: float) -> None:
        while models > 0:
            part = int(min(models, 1.0) * self._source.numel())
            self._target[:part].copy_(self._source[:part], non_blocking=True)
            models -= 1


@dataclass
class Table:
    """A table in the making.

    Args:
        heads: of its columns.
    """

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.heads, ("---",) * len(self.heads), *self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines)


@dataclass
class Findings:
    """What a part found.

    Args:
        numbers: for JSON.
        faults: what went wrong.
        missed: goals that were missed.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """Return what an action returns; None if it fails, which is a fault of the part and ends nothing else."""
        try:
            return action()
        except TimeoutError:
            raise
        except Exception as error:  # whatever a kernel, a driver or a compiler raises: the next line may work
            self.faults.append(f"{what}: {told(error)}")
            return None


def told(error: BaseException) -> str:
    """Return an error in a line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


@dataclass(frozen=True)
class Measured:
    """One line as it was measured; milliseconds."""

    first: float
    ms: float
    floor: float
    counts: Counts

    @property
    def ratio(self) -> float:
        return self.ms / self.floor


def measured(
    action: Callable[[], object], floor: float, device: torch.device, rounds: int, seconds: float = 3.0
) -> Measured:
    """Return the first call, the median of some more, and what one takes; the floor is given, in milliseconds."""
    first = timed(action, device)
    return Measured(first, median(action, device, rounds, seconds, warm=True), floor, counted(action, device))


def candidate_of(line: Line, pool: ExpertPool, model: Any) -> Callable[[], object]:
    """Return what makes the next candidate of a line in a model: never one that was made before."""
    following = candidates(line.recipe)
    return lambda: sm.materialize(next(following), pool, model)


def speed(pool: ExpertPool, device: torch.device, rounds: int, deadline: Deadline, judged: bool, size: str) -> Findings:
    """Print the table of resident experts."""
    found = Findings()
    model = pool.live_model(torch.bfloat16, device)
    parameters = pool.parameters(model)
    floor = Floor(sum(each.nbytes for each in parameters.values()), device)
    largest = 4 * max(info.numel for info in pool.tensors)
    todo = lines(norms(pool))
    done: dict[str, Measured] = {}
    for name, line in todo.items():
        if deadline.left < 0:
            found.faults.append(f"{name}: not measured, the part's time was over")
            continue
        one = found.attempt(
            name,
            lambda line=line: measured(
                candidate_of(line, pool, model), floor.milliseconds(line.read, rounds), device, rounds
            ),
        )
        if one is not None:
            done[name] = one
            found.missed += [*_missed(name, line, one)] if judged else []
            print(f"  {name}: {one.ms:.2f} ms, {one.ratio:.2f} times the copy", flush=True)
    beside = peers(pool, parameters, device, list(done), deadline, found)
    table = Table(
        (size, "ms", "copy, ms", "over the copy", "goal", "met", "first call, ms", "launches", "waits", "items",
         "waits by torch", "peak, largest tensors", "allocations", *beside)
    )  # fmt: skip
    for name, one in done.items():
        line, counts = todo[name], one.counts
        met = ("yes" if one.ratio <= line.goal else "no") if judged else "-"
        table.rows.append(
            (name, f"{one.ms:.2f}", f"{one.floor:.2f}", f"{one.ratio:.2f}", f"{line.goal:g}", met, f"{one.first:.0f}",
             *map(str, (counts.launches, counts.waits, counts.items, counts.warned)), f"{counts.peak / largest:.2f}",
             str(counts.allocations), *(_beside(column.get(name), one.floor) for column in beside.values()))
        )  # fmt: skip
        found.numbers[name] = {
            "ms": one.ms, "copy ms": one.floor, "first ms": one.first, "goal": line.goal, "launches": counts.launches,
            "waits": counts.waits, "items": counts.items, "warned": counts.warned, "allocations": counts.allocations,
            "peak": counts.peak, "grown": counts.grown, **{kind: column.get(name) for kind, column in beside.items()},
        }  # fmt: skip
    print(f"\n{table}\n")
    print("peak: device memory beside what was there, in largest tensors of float32; others: ms (times the copy).")
    return found


def _beside(ms: float | str | None, floor: float) -> str:
    return f"{ms:.1f} ({ms / floor:.1f})" if isinstance(ms, float) else ms or ""


def _missed(name: str, line: Line, one: Measured) -> list[str]:
    missed = [f"{name}: {one.ratio:.2f} times the copy, the goal is {line.goal:g}"] if one.ratio > line.goal else []
    if one.counts.waits > MOST_WAITS:
        missed.append(f"{name}: the host waits {one.counts.waits} times, the goal is {MOST_WAITS}")
    return missed


def peers(
    pool: ExpertPool,
    parameters: Mapping[str, Tensor],
    device: torch.device,
    names: list[str],
    deadline: Deadline,
    found: Findings,
) -> dict[str, dict[str, float | str]]:
    """Return kind -> name -> milliseconds of others, or why there are none; what fails there is no fault of ours."""
    columns: dict[str, dict[str, float | str]] = {"plain torch": {}, "mergekit": {}, "torch.compile": {}}
    others = found.attempt("the experts once more, for others", lambda: Peers(pool, parameters, device))
    if others is None:
        return {}
    kinds = (others.plain, others.mergekit, others.compiled)
    for (head, column), kind in zip(columns.items(), kinds, strict=True):
        for name in names:
            if deadline.left < 0:
                column[name] = "no time"
                continue
            try:
                action = kind(name)
                if action is not None:
                    column[name] = median(action, device, 3, 1.0)
            except TimeoutError:
                raise
            except ImportError as error:  # mergekit, which few have
                print(f"  {head}: {told(error)}")
                break
            except Exception as error:  # a compiler that lacks a C compiler, a peer that runs out of memory
                column[name] = "failed"
                print(f"  {head}, {name}: {told(error)}")
    return {head: column for head, column in columns.items() if column}


def streamed(pool: ExpertPool, device: torch.device, rounds: int, deadline: Deadline, judged: bool) -> Findings:
    """Print what candidates cost whose experts do not stay on the device."""
    found = Findings()
    pool.resident_bytes = 0
    model = pool.live_model(torch.bfloat16, device)
    size = sum(each.nbytes for each in pool.parameters(model).values())
    todo = lines(norms(pool))
    table = Table(
        ("streamed", "ms", "pinned copy, ms", "over the copy", "goal", "met", "first call, ms", "launches", "waits")
    )
    for name in STREAMED:
        if deadline.left < 0:
            found.faults.append(f"{name}: not measured, the part's time was over")
            continue
        line = todo[name]
        one = found.attempt(
            name,
            lambda line=line: measured(
                candidate_of(line, pool, model),
                median(lambda: _sent(line.read * size, device), device, rounds),
                device,
                rounds,
            ),
        )
        if one is None:
            continue
        met = ("yes" if one.ratio <= STREAMED_GOAL else "no") if judged else "-"
        if met == "no":
            found.missed.append(
                f"streamed {name}: {one.ratio:.2f} times the pinned copy, the goal is {STREAMED_GOAL:g}"
            )
        table.rows.append(
            (name, f"{one.ms:.1f}", f"{one.floor:.1f}", f"{one.ratio:.2f}", f"{STREAMED_GOAL:g}", met,
             f"{one.first:.0f}", str(one.counts.launches), str(one.counts.waits))
        )  # fmt: skip
        found.numbers[name] = {
            "ms": one.ms,
            "pinned copy ms": one.floor,
            "first ms": one.first,
            "waits": one.counts.waits,
        }
    print(f"\n{table}")
    return found


_PINNED: dict[str, tuple[Tensor, Tensor]] = {}


def _sent(size: int, device: torch.device) -> None:
    """Send so many bytes from page-locked memory."""
    if str(device) not in _PINNED:
        piece = min(PIECE, size)
        source = torch.zeros(piece, dtype=torch.uint8, pin_memory=device.type == "cuda")
        _PINNED[str(device)] = source, torch.zeros(piece, dtype=torch.uint8, device=device)
    source, target = _PINNED[str(device)]
    while size > 0:
        part = min(size, source.numel())
        target[:part].copy_(source[:part], non_blocking=True)
        size -= part


def tiny(pool: ExpertPool, device: torch.device, rounds: int, deadline: Deadline, judged: bool) -> Findings:
    """Print what candidates of some two hundred tiny tensors cost."""
    found = Findings()
    model = pool.live_model(torch.bfloat16, device)
    table = Table((f"{len(pool.tensors)} tiny tensors", "ms", "goal", "met", "first call, ms", "launches", "waits"))
    for name, line in lines(norms(pool)).items():
        if deadline.left < 0:
            found.faults.append(f"{name}: not measured, the part's time was over")
            continue
        one = found.attempt(
            name,
            lambda line=line: measured(candidate_of(line, pool, model), 1.0, device, rounds, 0.2),
        )
        if one is None:
            continue
        met = ("yes" if one.ms <= TINY_GOAL else "no") if judged else "-"
        if met == "no":
            found.missed.append(f"{len(pool.tensors)} tiny tensors, {name}: {one.ms:.2f} ms, the goal is {TINY_GOAL:g}")
        table.rows.append(
            (
                name,
                f"{one.ms:.2f}",
                f"{TINY_GOAL:g}",
                met,
                f"{one.first:.0f}",
                str(one.counts.launches),
                str(one.counts.waits),
            )
        )
        found.numbers[name] = {"ms": one.ms, "first ms": one.first, "waits": one.counts.waits}
    print(f"\n{table}")
    return found
