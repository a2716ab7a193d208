"""Texts that models read beside the tasks: to weigh weights by activations, to screen allocations, to repair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from sae_moo.config.document import Config
from sae_moo.evaluate.task import Task
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.places import located
from sae_moo.materialization.calibration import calibrate
from sae_moo.materialization.texts import TOKENS, calibration_texts, read_texts, sequences_of


def calibrated(config: Config, pool: ExpertPool, tasks: Sequence[Task], device: str) -> str | None:
    """Give the pool the activation norms that the configured criterion weighs by; return their digest."""
    section = config.pruning.calibrated
    if section is None:
        return None
    texts = _texts(section.data, config, tasks)
    return calibrate(pool, texts, section.tokens, section.model, config.models.dtype, device)


def _texts(data: str | None, config: Config, tasks: Sequence[Task]) -> Sequence[str | Sequence[int]]:
    """Return the texts of a file, or the search split's prompts, a task after another; the test split stays unseen."""
    if data is not None:
        return read_texts(located(data, config.directory))
    prompts = [dict.fromkeys(request.context for request in task.requests("search")) for task in tasks]
    return [prompt for row in zip_longest(*prompts) for prompt in row if prompt is not None]


def repaired_on(config: Config, pool: ExpertPool, tasks: Sequence[Task]) -> str:
    """Give the pool the texts that a repair reads: the calibration's, else prompts; return their digest."""
    section = config.pruning.calibration
    data, tokens = (None, TOKENS) if section is None else (section.data, section.tokens)
    return calibration_texts(pool, _texts(data, config, tasks), tokens)


def screened_on(config: Config, pool: ExpertPool, tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Return what allocations are screened on, as token ids; nothing if they are not."""
    section = config.evaluation.screening
    if section is None:
        return ()
    texts = _texts(section.data, config, tasks)
    sequences = sequences_of(pool, texts, max(section.tokens, section.more), "evaluation.screening")
    return tuple(map(tuple, sequences))
