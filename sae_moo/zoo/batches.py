"""Items as padded tensors, and how well a model answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from sae_moo.zoo.tokenizer import END_ID, PAD_ID

_NOT_ASKED = -100


@dataclass(frozen=True)
class Example:
    """One item as token ids: ``prompt`` is given, ``answer`` is asked for."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    Attributes:
        ids: Token ids, int64, shape (rows, length). Padding stands after everything that is asked for, so that causal
            attention never reaches it and no mask is needed.
        asked: Token ids that the model should give, int64, shape (rows, length); -100 where it is not asked.
    """

    ids: torch.Tensor
    asked: torch.Tensor


def encode(tokenizer: Tokenizer, items: Sequence[tuple[str, str]], end: bool) -> list[Example]:
    """Turn prompts and answers into token ids.

    Args:
        tokenizer: The zoo's tokenizer.
        items: Prompts and answers.
        end: Whether the end-of-text token is asked for too, as in training; scoring leaves it out.

    Returns:
        One row per item, in the same order.
    """
    prompts = tokenizer.encode_batch([prompt for prompt, _ in items])
    answers = tokenizer.encode_batch([answer for _, answer in items])
    tail = (END_ID,) if end else ()
    return [Example(tuple(p.ids), tuple(a.ids) + tail) for p, a in zip(prompts, answers, strict=True)]


def collate(rows: Sequence[Example]) -> Batch:
    """Pad rows into one batch.

    Args:
        rows: At least one row.

    Returns:
        The batch; its length is that of the longest row.
    """
    length = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((len(rows), length), PAD_ID)
    asked = torch.full((len(rows), length), _NOT_ASKED)
    for i, row in enumerate(rows):
        start, stop = len(row.prompt), len(row.prompt) + len(row.answer)
        ids[i, :stop] = torch.tensor(row.prompt + row.answer)
        asked[i, start:stop] = torch.tensor(row.answer)
    return Batch(ids, asked)


def answer_logits(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a model over a batch and keep what it says where it is asked.

    Args:
        model: The model; its gradient mode is the caller's.
        batch: What it reads.

    Returns:
        Logits, shape (asked tokens, vocabulary); the right ids, shape (asked tokens,); and where they stand, bool,
        shape (rows, length - 1).
    """
    states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    where = batch.asked[:, 1:] != _NOT_ASKED
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return head(states[:, :-1][where]), batch.asked[:, 1:][where], where


@torch.inference_mode()
def accuracy(model: PreTrainedModel, rows: Sequence[Example], size: int = 100) -> float:
    """Score a model by exact match under teacher forcing.

    Args:
        model: The model, used in evaluation mode.
        rows: Rows without the end-of-text token.
        size: Rows per batch.

    Returns:
        Share of rows of which every answer token is the most likely one, in [0, 1].
    """
    model.train(False)
    right = 0
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.answer))
    for start in range(0, len(ordered), size):
        logits, wanted, where = answer_logits(model, collate(ordered[start : start + size]))
        hit = torch.ones_like(where)
        hit[where] = logits.argmax(-1) == wanted
        right += int(hit.all(1).sum())
    return right / len(ordered)
