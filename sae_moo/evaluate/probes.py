"""Probes: the texts without labels on which models are held beside each other, for each task its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sae_moo.evaluate.asking import ProbesSection
from sae_moo.evaluate.screening import PASS_BYTES
from sae_moo.evaluate.task import Request, Task
from sae_moo.experts.pool import ExpertPool
from sae_moo.files.places import located
from sae_moo.materialization.texts import read_texts, sequences_of, texts_digest
from sae_moo.recipe import BASE

T = TypeVar("T")
WHERE = "predict.probes"
SHORTEST = 64
"""Tokens of a probe that are read however large the vocabulary is."""
_ALL = 10**9  # tokens: all there are


@dataclass(frozen=True, slots=True)
class Probes:
    """What models read for a task.

    Args:
        task: its name.
        sequences: token ids, at least two each.
    """

    task: str
    sequences: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """How many tokens a model reads."""
        return sum(map(len, self.sequences))

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the sequences."""
        return texts_digest(self.sequences)


def probes_of(
    tasks: Sequence[Task], pool: ExpertPool, section: ProbesSection, directory: Path | None = None
) -> list[Probes]:
    """Return the probes of each task, in their order.

    Texts are taken from all over the file or the search split, as many as are asked for, each a sequence of its own, or
    several where it is longer than models take. Where they have more tokens than may be read, the longest lose their
    beginnings, which examples and instructions share; and so do those whose logits would take more than a pass may
    (`screening.PASS_BYTES`).

    Args:
        tasks: the tasks.
        pool: the experts, whose tokenizer reads the texts of a file.
        section: which texts, and how many.
        directory: folder that the file's path starts from; None: the current one.

    Raises:
        InputError: if the file cannot be read, or there is no text of two tokens.
    """
    vocabulary = pool.checkpoints[BASE].vocabulary
    longest = _ALL if vocabulary is None else max(SHORTEST, PASS_BYTES // (4 * vocabulary))
    given = None if section.data is None else read_texts(located(section.data, directory), f"texts of {WHERE}.data")
    found = []
    for task in tasks:
        texts = _prompts(task) if given is None else given
        where = WHERE if given is not None else f"{WHERE}: prompts of {task.name}"
        sequences = [each[-longest:] for each in sequences_of(pool, spread(texts, section.items), _ALL, where)]
        found.append(Probes(task.name, tuple(map(tuple, bounded(sequences, section.tokens)))))
    return found


def facts_of(section: ProbesSection, directory: Path | None = None) -> dict[str, str]:
    """Return what tells probes from others whatever tokenizer reads them: which texts, and how much of them is read.

    Args:
        section: which texts, and how many.
        directory: folder that the file's path starts from; None: the current one.

    Raises:
        InputError: if the file cannot be read.
    """
    texts = "prompts of each task"
    if section.data is not None:
        read = json.dumps(read_texts(located(section.data, directory)))
        texts = f"a file of digest {hashlib.sha256(read.encode()).hexdigest()[:16]}"
    return {"data": texts, "items": str(section.items), "tokens": str(section.tokens)}


def _prompts(task: Task) -> list[tuple[int, ...]]:
    """Return what the search split asks, each once and without answers.

    Where nothing is asked but which of several texts is likelier, these are all there is, the right one and the wrong
    ones alike.
    """
    requests = task.requests("search")
    prompts = dict.fromkeys(each.context for each in requests)
    if all(len(prompt) < 2 for prompt in prompts) and len(requests) > task.instances("search"):
        prompts = dict.fromkeys(each.context + each.continuation for each in requests if isinstance(each, Request))
    return list(prompts)


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return so many values from all over a sequence, in order; all where there are not more."""
    if len(values) <= count:
        return list(values)
    return [values[i * len(values) // count] for i in range(count)]


def bounded(sequences: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Return the ends of sequences, with at most so many tokens in all: the longest lose their beginnings.

    Where each would have less than two, there are fewer sequences.

    Args:
        sequences: of two tokens at least.
        tokens: at least 2.
    """
    kept = spread(sequences, max(1, tokens // 2))
    left, longest = tokens, 0
    lengths = sorted(map(len, kept))
    for i, length in enumerate(lengths):  # the shorter ones are whole, and what they leave is the longer ones'
        longest = left // (len(lengths) - i)
        if length > longest:
            break
        left -= length
        longest = length
    return [sequence[-longest:] for sequence in kept]
