"""A worker of a search: opens experts and tasks for itself and evaluates what it is sent."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sae_moo.config.document import Config
from sae_moo.errors import InputError, itemized
from sae_moo.evaluate.costs import CostTable
from sae_moo.evaluate.evaluator import Evaluator
from sae_moo.jobs.bench import Bench, resolve_device, versions
from sae_moo.materialization.forms import form
from sae_moo.study.local import evaluated
from sae_moo.study.post import WorkerLine
from sae_moo.study.splitting import Joining, Share, errand_of, found, misfit


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a worker is to evaluate with: what its driver evaluates with, said so that another process can open it.

    Args:
        config: the configuration.
        fingerprints: expert name -> content fingerprint, ``base`` among them.
        items: task name -> fingerprint of its items.
        anchors: task name -> numbers of the instances that stand for all; empty if there are none.
        batches: how many tokens are computed at once, by what is computed; empty where that is not known yet.
        costs: what a token costs; None: nothing asks for it.
        sharing: how many workers share this machine's processor; 0: whoever begins them says how many threads they
            have.
        setting: what must be the same there besides: kind of device, versions; empty: nothing.
    """

    config: Config
    fingerprints: Mapping[str, str]
    items: Mapping[str, str]
    anchors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)
    costs: CostTable | None = None
    sharing: int = 1
    setting: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, bench: Bench, anchors: Mapping[str, Sequence[int]], sharing: int = 1) -> Assigned:
        """Return what evaluates as a bench does, which was anchored so."""
        items = {task.name: task.fingerprint for task in bench.tasks}
        return cls(
            bench.config,
            bench.pool.fingerprints,
            items,
            anchors,
            bench.batches,
            bench.costs,
            sharing,
            _setting(bench.device),
        )

    def __call__(self) -> tuple[Callable[[bytes], bytes], dict[str, str]]:
        """Open experts and tasks in this process; return what answers letters, and facts for people.

        Raises:
            InputError: if they cannot be opened here, or are not those of the driver.
        """
        if self.sharing:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.sharing))
        setting = _setting(resolve_device(self.config.models.device))
        others = [
            f"{name}: {setting.get(name)} instead of {value}"
            for name, value in self.setting.items()
            if setting.get(name) != value
        ]
        if others:
            raise InputError(itemized("what evaluates here is not what the search evaluates with", others))
        bench = Bench.open(self.config).anchored(self.anchors).sized(self.batches).costed(self.costs)
        here = {f"weights of {name}": value for name, value in bench.pool.fingerprints.items()}
        here |= {f"items of {task.name}": task.fingerprint for task in bench.tasks}
        there = {f"weights of {name}": value for name, value in self.fingerprints.items()}
        there |= {f"items of {name}": value for name, value in self.items.items()}
        differing = [name for name in {**there, **here} if here.get(name) != there.get(name)]
        if differing:
            raise InputError(itemized("what is opened here is not what the search opened", differing))
        batches: dict[str, int] = dict(self.batches)
        evaluator = bench.evaluator(batches.update)
        return _Desk(evaluator, batches), {"device": bench.device, "merging": form(bench.device).words}


def _setting(device: str) -> dict[str, str]:
    """Return what decides, beside weights and items, what comes of a candidate."""
    return {"device": torch.device(device).type, "versions": versions("torch", "transformers")}


class _Desk:
    """Answers letters, one at a time."""

    def __init__(self, evaluator: Evaluator, batches: Mapping[str, int]) -> None:
        self._evaluator = evaluator
        self._batches = batches
        self._line = WorkerLine()

    def __call__(self, letter: bytes) -> bytes:
        began, errand, evaluator = time.time(), errand_of(self._line, letter), self._evaluator
        match errand:
            case Share(job, index, count):
                findings = evaluator.ask(job.recipes[0], index, count)
                return found(pickle.dumps(findings), findings.most, began, self._batches)
            case Joining(job, shares):
                joined = evaluator.join(job.recipes[0], job.rivals, [pickle.loads(findings) for findings in shares])
                if joined is None:
                    return misfit(self._batches)
                return self._line.written(job.number, joined, began, self._batches)
            case job:
                screen = None if evaluator.screening is None else evaluator.best_of
                evaluation = evaluated(job, evaluator.evaluate, screen)
                return self._line.written(job.number, evaluation, began, self._batches)
