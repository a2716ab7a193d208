"""Features of pairs of experts: what is known of a merge before it is made, in a table."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from sae_moo.config.document import Config
from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.asking import ProbesSection
from sae_moo.evaluate.expert_scores import computed_by
from sae_moo.evaluate.probes import probes_of
from sae_moo.evaluate.task import Task
from sae_moo.evaluate.trace_likeness import FUNCTIONAL, trace_likenesses
from sae_moo.evaluate.traces import Traces
from sae_moo.experts.pool import ExpertPool
from sae_moo.files import user_cache
from sae_moo.materialization.likeness import STRUCTURAL, Pair, likenesses, turned
from sae_moo.prediction.table import FeatureTable
from sae_moo.recipe import BASE

log = logging.getLogger(__name__)

FEATURES = (*FUNCTIONAL, *STRUCTURAL)
"""Names of all features, in the order of a table; the same for every architecture."""
KIND = "likenesses"
_METHOD = 1  # raised when the same models would have other features

Features = Mapping[str, float]
K = TypeVar("K")


def features_of(
    config: Config,
    pool: ExpertPool,
    tasks: Sequence[Task],
    device: str,
    probes: ProbesSection,
    experts: Sequence[str] | None = None,
) -> FeatureTable:
    """Return the features of all ordered pairs of experts on all tasks.

    One forward pass of each expert, and of the base, over the probes of all tasks, and one over the weights of all.
    What comes of it is kept in the user's cache folder by fingerprints, probes and whatever else it depends on: a pair
    is looked at once on a machine. Numbers are rounded, and may differ in the last digit where another machine, or
    another number of threads, made them: who has to have the same ones keeps the table.

    Args:
        config: the configuration; what is read of it is the dtype of the live model and where files are looked for.
        pool: the experts.
        tasks: the tasks.
        device: where the live model lives.
        probes: which texts.
        experts: names; None: all but the base.

    Returns:
        A row for each pair and task, named by `FEATURES`; NaN where models do not have what is measured.

    Raises:
        InputError: for fewer than two experts, unknown or the same ones; if there are no texts, or an expert's logits
            are not finite.
    """
    known = [name for name in pool.names if name != BASE]
    names = known if experts is None else list(experts)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"features: no expert named {unknown[0]!r}{nearest(unknown[0], known)}; there are {', '.join(known)}"
        )
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"features: expected two experts or more, each once, got {', '.join(names) or 'none'}")
    # always seen from the same side: numbers depend on no order of experts
    pairs = [
        pair if pool.fingerprints[pair[0]] <= pool.fingerprints[pair[1]] else (pair[1], pair[0])
        for pair in combinations(names, 2)
    ]
    asked = probes_of(tasks, pool, probes, config.directory)
    traces = Traces(pool, asked, config.models.dtype, device)

    def structural_name(pair: Pair) -> str:
        facts = [
            _METHOD,
            *(pool.fingerprints[each] for each in (BASE, *pair)),
            pool.vocabulary,
            pool.checkpoints[BASE].config,
            *computed_by("cpu"),
            *pool.pruned,  # matrices have ranks where they can be pruned
        ]
        return _name(facts)

    def functional_name(pair: Pair, task: str) -> str:
        return _name([_METHOD, *(traces.name(each, task) for each in (BASE, *pair))])

    structural = _kept_or_made(
        {pair: structural_name(pair) for pair in pairs}, STRUCTURAL, lambda missing: likenesses(pool, missing)
    )
    functional = _kept_or_made(
        {(*pair, each.task): functional_name(pair, each.task) for pair in pairs for each in asked},
        FUNCTIONAL,
        lambda missing: _functional(traces, missing),
    )
    found: dict[tuple[str, str, str], Features] = {}
    for one, other in pairs:
        for each in asked:
            row = {**functional[one, other, each.task], **structural[one, other]}
            found[one, other, each.task], found[other, one, each.task] = row, turned(row)
    order = [(one, other, each.task) for one in names for other in names if one != other for each in asked]
    return FeatureTable(FEATURES, {key: np.array([found[key][name] for name in FEATURES]) for key in order})


def _functional(
    traces: Traces, missing: Sequence[tuple[str, str, str]]
) -> dict[tuple[str, str, str], dict[str, float]]:
    by_task: dict[str, list[Pair]] = {}
    for one, other, task in missing:
        by_task.setdefault(task, []).append((one, other))
    models = {
        task: list(dict.fromkeys([BASE, *(name for pair in pairs for name in pair)])) for task, pairs in by_task.items()
    }
    traces.make(models)
    found = {}
    for task, pairs in by_task.items():
        for pair, features in trace_likenesses(traces.of(models[task], task), pairs).items():
            found[*pair, task] = features
    return found


def _kept_or_made(
    names: Mapping[K, str], features: Iterable[str], make: Callable[[list[K]], Mapping[K, Features]]
) -> dict[K, Features]:
    """Return features by what they are of: those that are kept under a name of theirs, and the others made together.

    What has the same name is the same, as of two tasks that read one file of texts, and is made once.
    """
    rows: dict[str, Features] = {}
    missing: dict[str, K] = {}
    for key, name in names.items():
        if name in rows or name in missing:
            continue
        kept = user_cache.kept_value(KIND, name)
        if isinstance(kept, dict) and list(kept) == list(features):
            rows[name] = {each: math.nan if value is None else float(value) for each, value in kept.items()}
        else:
            missing[name] = key
    log.info("features: %d of %d are known", len(rows), len(rows) + len(missing))
    made = make(list(missing.values())) if missing else {}
    for name, key in missing.items():
        rows[name] = made[key]
        values = {each: None if math.isnan(value) else value for each, value in made[key].items()}
        user_cache.keep_value(KIND, name, values)
    return {key: rows[name] for key, name in names.items()}


def _name(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
