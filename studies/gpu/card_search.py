"""A search on a device, its time split into merging, scoring and the rest."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from card_recipes import SHARE_GOAL
from card_speed import Findings, Table

import sae_moo as sm
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.tasks import open_tasks
from sae_moo.study.events import Begun, Event, Finished

CHOICES = 4
POPULATION = 4


def items(count: int) -> list[dict[str, Any]]:
    """Return four-choice items, of some thirty tokens each to the zoo's tokenizer."""
    rows = []
    for i in range(count):
        answers = [str(13 * i % 97 + k) for k in range(CHOICES)]
        rows.append(
            {
                "prompt": f"Here is a question on sums. Which number is {i} + {7 * i % 31}? It is",
                "choices": answers,
                "label": i % CHOICES,
            }
        )
    return rows


def configured(folder: Path, pool: ExpertPool, device: torch.device, requests: int, evaluations: int) -> sm.Config:
    """Return the configuration of a search over a pool, its items written beside it."""
    rows = items(requests + 8)
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = sum(info.numel * info.dtype.itemsize for info in pool.tensors)
    raw = {
        "study": {"name": "card"},
        "models": {
            "base": str(pool.checkpoints["base"].folder),
            "experts": {name: str(pool.checkpoints[name].folder) for name in pool.names if name != "base"},
            "dtype": "bfloat16",
            "device": str(device),
            "cache_gib": 2 * POPULATION * sizes / 2**30,
        },
        "tasks": [
            {"name": "choices", "data": "items.jsonl", "kind": "multiple_choice", "search": requests, "test": 8},
        ],
        "objectives": ["choices", "sparsity"],
        "search": {"population": POPULATION, "evaluations": evaluations},
    }
    return sm.Config.from_dict(raw, str(folder))


def search(
    pool: ExpertPool, device: torch.device, folder: Path, requests: int, evaluations: int, judged: bool
) -> Findings:
    """Print where the time of a search goes."""
    found = Findings()
    config = configured(folder, pool, device, requests, evaluations)
    tasks = open_tasks(config, pool)
    bench = sm.Bench(config, pool, tasks, str(device))
    tokens = sum(len(pool.tokenizer()(row["prompt"]).input_ids) for row in items(requests)) / requests
    ends: list[tuple[float, float, float]] = []  # when it ended, seconds of merging, of scoring
    begun: list[float] = []

    def heard(event: Event) -> None:
        if isinstance(event, Begun):
            begun.append(time.perf_counter())
        elif isinstance(event, Finished):
            one = event.record.evaluation
            if not one.ok:
                found.faults.append(f"trial {event.record.number} failed: {one.reason}")
            ends.append((time.perf_counter(), one.seconds_merge, one.seconds_score))

    start = time.perf_counter()
    sm.search(config, heard, root=folder / "runs", bench=bench)
    opening = begun[0] - start
    warm = max(1, len(ends) // 3)  # what is compiled and measured once
    if len(ends) <= warm:
        raise RuntimeError(f"expected some more candidates to measure, the search made {len(ends)}")
    whole = ends[-1][0] - ends[warm - 1][0]
    merging, scoring = (sum(each[i] for each in ends[warm:]) for i in (1, 2))
    count = len(ends) - warm
    merge, score = (statistics.median(each[i] for each in ends[warm:]) for i in (1, 2))
    rest = whole - merging - scoring
    table = Table((f"{count} candidates, {requests} four-choice requests each", "ms a candidate", "share"))
    for what, seconds in (("merging", merging), ("scoring", scoring), ("the rest", rest), ("all", whole)):
        table.rows.append((what, f"{seconds / count * 1e3:.1f}", f"{seconds / whole:.0%}"))
    print(f"\n{table}\n")
    print(
        f"medians: merging {merge * 1e3:.1f} ms, scoring {score * 1e3:.1f} ms, {merge / score:.3f} of it (goal {SHARE_GOAL:g})"
    )
    print(f"{tokens:.0f} tokens to a prompt; four choices of one to three more each")
    print(f"{warm} candidates before these, not counted; opened and begun in {opening:.1f} s")
    if judged and merge > SHARE_GOAL * score:
        found.missed.append(f"search: merging is {merge / score:.2f} of scoring, the goal is {SHARE_GOAL:g}")
    found.numbers = {
        "candidates": count, "requests": requests, "merging s": merging, "scoring s": scoring, "rest s": rest,
        "median merging s": merge, "median scoring s": score,
    }  # fmt: skip
    return found
