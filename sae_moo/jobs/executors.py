"""What evaluates the candidates of a search: this process, or workers elsewhere, as the configuration says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import torch

from sae_moo.config.document import Config
from sae_moo.config.sections import ExecutorSection
from sae_moo.errors import InputError
from sae_moo.jobs.bench import Bench, check_config, resolve_device
from sae_moo.jobs.worker import Assigned
from sae_moo.study.cluster import Cluster, RayCrew
from sae_moo.study.crew import Crew
from sae_moo.study.executor import Crewed, Executor, WorkerLost
from sae_moo.study.local import LocalExecutor
from sae_moo.study.pool import PooledExecutor
from sae_moo.study.processes import Opened, ProcessCrew


def executor_of(
    bench: Bench,
    anchors: Mapping[str, Sequence[int]],
    sized: Callable[[Mapping[str, int]], None] = lambda batches: None,
    listener: Callable[[Crewed | WorkerLost], None] = lambda event: None,
) -> Executor:
    """Return what evaluates candidates as a bench does; nothing is begun yet.

    Args:
        bench: what evaluates.
        anchors: the instances that it is anchored to.
        sized: told how many tokens are computed at once whenever that changes.
        listener: told who evaluates whenever that changes, where it is not this process, and of lost workers.
    """
    crew = crew_of(bench.config.executor, bench.device, lambda sharing: Assigned.of(bench, anchors, sharing))
    if crew is not None:
        counted = bench.config.search.tokens is not None  # forward tokens are a budget: no more of them than need be
        return PooledExecutor(crew, sized, listener, splits=True, splits_races=not counted)
    evaluator = bench.evaluator(sized)
    return LocalExecutor(evaluator.evaluate, None if evaluator.screening is None else evaluator.best_of)


def crew_of(section: ExecutorSection, device: str, opens: Callable[[int], Callable[[], Opened]]) -> Crew | None:
    """Return the workers that are configured, none of them begun; None where this process does the work.

    Args:
        section: which.
        device: where models live here.
        opens: how many workers share this machine's processor, 0 where that is not known -> what opens a worker.
    """
    if section.kind == "processes":
        workers = workers_of(section, device)
        return ProcessCrew(opens(workers), workers, _devices(device))
    if section.kind == "ray":
        return RayCrew(opens(0), cluster_of(section, device))
    return None


def check_workers(config: Config) -> None:
    """Raise InputError if the workers that are configured cannot be had: a package, a cluster, room, a device.

    No model is opened for it, so that it can be told first; a cluster that runs already is asked.
    """
    check_config(config)
    device = resolve_device(config.models.device)
    if config.executor.kind == "ray":
        cluster_of(config.executor, device).check()


def cluster_of(section: ExecutorSection, device: str) -> Cluster:
    """Return the configured Ray cluster, and what each worker has of it.

    Raises:
        InputError: if models are on GPUs, and workers have none.
    """
    workers, cores = workers_of(section, device), os.cpu_count() or 1
    on_gpu = device.startswith("cuda")
    gpus = section.gpus_per_worker
    if gpus is not None and bool(gpus) != on_gpu:
        there = "has a GPU" if on_gpu else "has none, or models.device says so"
        raise InputError(
            f"executor.gpus_per_worker: {gpus:g}, and models are on {device} here: workers compute on what the "
            f"search computes on, and this machine {there}"
        )
    return Cluster(
        workers,
        section.cpus_per_worker or (max(1, cores // workers) if section.address is None else 1),
        float(on_gpu) if gpus is None else gpus,
        section.address,
        torch.cuda.device_count() if on_gpu else 0,
    )


def workers_of(section: ExecutorSection, device: str) -> int:
    """Return how many workers there are to be: as many as configured, else one a GPU, or one for every two cores."""
    if section.workers is not None:
        return section.workers
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return max(1, (os.cpu_count() or 1) // 2)


def words_of(bench: Bench) -> str:
    """Return in words who evaluates."""
    section = bench.config.executor
    if section.kind == "local":
        return "this process, one candidate after another"
    if section.kind == "ray":
        return cluster_of(section, bench.device).words
    workers = workers_of(section, bench.device)
    many = f"{workers} process{'' if workers == 1 else 'es'} of this machine"
    threads = max(1, (os.cpu_count() or 1) // workers)
    return f"{many}, {threads} thread{'' if threads == 1 else 's'}{'' if workers == 1 else ' each'}"


def _devices(device: str) -> Callable[[int], Mapping[str, str]]:
    """Return which GPUs a worker sees: one after another; every one the same where a single one is configured."""
    if device != "cuda":
        return lambda place: {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    return lambda place: {"CUDA_VISIBLE_DEVICES": names[place % len(names)]}
