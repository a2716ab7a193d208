"""The merge that the language model's study prunes, and how much of it a candidate keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import TASKS, encoded, texts
from torch.nn.functional import cross_entropy

from sae_moo import Cast, Expert, ExpertPool, Merge, Prune, Recipe, Repair, calibration_texts, materialize
from sae_moo.evaluate.screening import Measure, Texts, log_probabilities, similarity
from sae_moo.materialization.calibration import activation_norms, add_norms
from sae_moo.materialization.parents import WeightCache

DTYPE = "bfloat16"
SCORED, CHOSEN = 3000, 1000
"""Tokens of each task that are scored, and that the scale of the merge is chosen by."""
CALIBRATED, PIECES, PIECE = 4096, 16, 64
"""Tokens of both tasks that norms are summed over; pieces of text that candidates are compared with the merge on, and
tokens of each: few whole texts would say more about themselves than about the tasks."""
PASS = 512
"""Tokens of a forward pass, padded, unless a single text has more."""
LEVELS = (0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats of texts of both tasks, a row per text.

    Args:
        task: position among `TASKS`, shape (texts,).
        whole: nats and number of all tokens but the first, shape (texts, 2).
        gold: nats and number of the gold answer's tokens, shape (texts, 2).
    """

    task: np.ndarray
    whole: np.ndarray
    gold: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token over all texts."""
        return _per_token(self.whole)

    def of(self, task: str) -> tuple[float, float]:
        """Return nats per token of a task's texts, and of their gold answers."""
        here = self.task == TASKS.index(task)
        return _per_token(self.whole[here]), _per_token(self.gold[here])

    def above(self, other: Losses) -> tuple[float, float]:
        """Return by how much the mean is above another's, and the standard error of that over texts."""
        nats, tokens = self.whole[:, 0] - other.whole[:, 0], self.whole[:, 1]
        mean = nats.sum() / tokens.sum()
        rest = nats - mean * tokens  # a ratio's: the texts differ in length
        return float(mean), float(np.sqrt((rest**2).sum() * len(rest) / (len(rest) - 1)) / tokens.sum())


def passes(rows: Sequence[tuple[int, list[int], int]]) -> Iterator[list[tuple[int, list[int], int]]]:
    """Yield rows, which are sorted by length, in batches of at most `PASS` tokens, padded."""
    batch: list[tuple[int, list[int], int]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[1]) > PASS:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _per_token(rows: np.ndarray) -> float:
    return float(rows[:, 0].sum() / rows[:, 1].sum())


class Bench:
    """A pool of the base and both experts, a live model, and texts.

    Args:
        model: folder of the base.
        experts: folder of the adapters, as `experts.py` writes them.
        scale: of both task vectors in the merge.
    """

    def __init__(self, model: Path, experts: Path, scale: float) -> None:
        torch.set_num_threads(1)
        self.pool = ExpertPool.open(str(model), {name: str(experts / name) for name in TASKS})
        self.live = self.pool.live_model(DTYPE, "cpu").eval()
        self.cache = WeightCache(1 << 30)
        self.tokenizer = self.pool.tokenizer()
        self.scale = scale
        self.merge = self.merged(scale)
        self._kept = experts / "chosen.json"

    @staticmethod
    def merged(scale: float) -> Recipe:
        """Return task arithmetic of both experts."""
        return Cast(Merge("task_arithmetic", tuple(Expert(name) for name in TASKS), (scale, scale)), DTYPE)

    def write(self, recipe: Recipe) -> None:
        """Write a recipe's weights into the live model."""
        materialize(recipe, self.pool, self.live, self.cache)

    def keep(self, name: str, value: object) -> None:
        """Remember a choice beside the experts, for the parts of the study that go on from it."""
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        self._kept.write_text(json.dumps(kept | {name: value}, indent=1))

    def kept(self, name: str) -> Any:
        """Return a choice that another part of the study has made.

        Raises:
            SystemExit: if it has not.
        """
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        if name not in kept:
            raise SystemExit(f"{self._kept}: no {name!r} yet: run the parts of the study in order")
        return kept[name]

    def rows(self, part: str, tokens: int) -> list[tuple[int, list[int], int]]:
        """Return texts of a part, so many tokens a task: task, token ids, tokens of the answer."""
        return [(i, *row) for i, task in enumerate(TASKS) for row in encoded(self.tokenizer, texts(task, part), tokens)]

    def sequences(self, part: str, tokens: int) -> list[list[int]]:
        """Return token ids of a part's texts without labels, half of the tokens from each task, tasks in turn."""
        both = [[ids for i, ids, _ in self.rows(part, tokens // 2) if i == task] for task in range(len(TASKS))]
        order = sorted((j / len(rows), i, j) for i, rows in enumerate(both) for j in range(len(rows)))
        return [both[i][j] for _, i, j in order]

    @cached_property
    def _parts(self) -> dict[str, list[tuple[int, list[int], int]]]:
        return {"score": self.rows("score", SCORED), "choose": self.rows("choose", CHOSEN)}

    def losses(self, recipe: Recipe, part: str = "score") -> Losses:
        """Materialize a recipe and return its losses on a part."""
        self.write(recipe)
        return self.live_losses(part)

    @torch.inference_mode()
    def live_losses(self, part: str = "score") -> Losses:
        """Return the losses of the live model as it is."""
        rows = sorted(self._parts[part], key=lambda row: len(row[1]))
        whole, gold = [], []
        for batch in passes(rows):
            width = len(batch[-1][1])
            ids = torch.tensor([row[1] + [0] * (width - len(row[1])) for row in batch])  # the right is seen by none
            logits = self.live(input_ids=ids, use_cache=False).logits[:, :-1].float()
            nats = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(batch), -1)
            for (_, own, answer), each in zip(batch, nats.double(), strict=True):
                end = len(own) - 1
                whole.append((float(each[:end].sum()), end))
                gold.append((float(each[end - answer : end].sum()), answer))
        return Losses(np.array([task for task, _, _ in rows]), np.array(whole), np.array(gold))

    def norms(self, recipe: Recipe, tokens: int = CALIBRATED) -> str:
        """Give the pool the activation norms of any recipe's own model; return their digest."""
        self.write(recipe)
        return add_norms(self.pool, activation_norms(self.pool, self.live, self.sequences("calibrate", tokens)))

    def repaired(self, recipe: Recipe, tokens: int) -> Recipe:
        """Return a pruned candidate with what is left repaired on so many tokens of the calibration's texts."""
        digest = calibration_texts(self.pool, self.sequences("calibrate", tokens), tokens)
        assert isinstance(recipe, Cast)
        return Cast(Repair(recipe.input, digest), DTYPE)

    @cached_property
    def blocks(self) -> list[int]:
        """Groups of the blocks, by depth."""
        return sorted({info.group for info in self.pool.tensors if info.prunable})

    def by_block(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Return sparsities of all groups from those of the blocks."""
        asked = dict(zip(self.blocks, levels, strict=True))
        return tuple(round(float(asked.get(group, 0.0)), 6) for group in range(len(self.pool.groups)))


class Teacher:
    """A model's next-token distributions on texts without labels, and how alike those of others are.

    Args:
        bench: whose live model is written into.
        recipe: the model.
        measure: ``tv`` or ``kl``, as `screening.similarity` has them.
    """

    def __init__(self, bench: Bench, recipe: Recipe, measure: Measure = "tv") -> None:
        self._bench, self._measure = bench, measure
        pieces = [ids[:PIECE] for ids in bench.sequences("choose", 2 * CHOSEN * PIECES) if len(ids) >= PIECE]
        self._texts = Texts.of(pieces[:PIECES], bench.live.config.vocab_size)
        bench.write(recipe)
        self._wanted = log_probabilities(bench.live, self._texts)
        self.tokens = self._texts.tokens
        """Tokens that models have read."""

    def alike(self, recipe: Recipe) -> float:
        """Return the mean of 1 - TV, or of minus KL, over the places of the texts."""
        self._bench.write(recipe)
        self.tokens += self._texts.tokens
        return float(similarity(self._wanted, self._bench.live, self._texts, self._measure).mean())


def pruned(recipe: Recipe, sparsity: float | tuple[float, ...], norms: str | None, scope: str) -> Recipe:
    """Return a recipe pruned by magnitude, or by wanda where norms are given; nothing at sparsity 0."""
    if sparsity == 0.0:
        return recipe
    return Cast(Prune(recipe, sparsity, "magnitude" if norms is None else "wanda", scope, calibration=norms), DTYPE)


class Table:
    """A table in Markdown, printed row by row as it comes."""

    def __init__(self, *columns: str) -> None:
        print("\n|", " | ".join(columns), "|")
        print("|---" * len(columns) + "|", flush=True)

    def row(self, *cells: object) -> None:
        print(
            "|", " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells), "|", flush=True
        )


def numbers(losses: Losses, dense: Losses) -> Iterator[object]:
    """Yield what a table says of a candidate: mean, above dense, and of each task all tokens and gold answers."""
    above, error = losses.above(dense)
    yield losses.mean
    yield f"{above:+.3f} ± {error:.3f}"
    for task in TASKS:
        yield from losses.of(task)


MEASURES = ("loss", "above dense", *(name for task in TASKS for name in (task, f"{task}: gold answers")))
