"""Built-in tasks: the zoo's and the user's own items, three ways of scoring, splits disjoint by content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sae_moo import zoo
from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.splits import deal
from sae_moo.evaluate.task import Answer, Answered, Metric, Request
from sae_moo.objectives.scores import SPLITS, Split

Kind = Literal["multiple_choice", "exact_match", "likelihood"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Item:
    """One item: a prompt and its possible continuations, joined to it as they stand.

    Args:
        prompt: the text before the answer.
        choices: the possible answers; a single one for `exact_match` and `likelihood`.
        label: index of the right choice.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int = 0


class ItemTask:
    """A task over items with known answers.

    Scores per instance: `multiple_choice` 1 if the right choice has the highest summed log probability (as the
    harness's ``acc``; the first wins a tie); `exact_match` 1 if greedy decoding writes exactly the answer's tokens
    and then ends with a new line or a special token, found with one teacher-forced forward pass; `likelihood` the
    geometric mean probability of the answer's tokens, which still separates models where accuracy is at chance.

    Args:
        name: the task's name.
        kind: how items are scored.
        splits: the items of the search and of the test split.
        tokenizer: a transformers tokenizer; items are tokenised once, here.
        max_tokens: longest prompt with answer that the model takes, or None.

    Raises:
        InputError: if an item is longer than `max_tokens` or an answer has no tokens.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        splits: Mapping[Split, Sequence[Item]],
        tokenizer: Any,
        max_tokens: int | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.items = {split: tuple(splits[split]) for split in SPLITS}
        ends = end_tokens(tokenizer) if kind == "exact_match" else ()
        self._requests: dict[Split, tuple[Request, ...]] = {
            split: tuple(
                encode(tokenizer, item.prompt, choice, ends) for item in self.items[split] for choice in item.choices
            )
            for split in SPLITS
        }
        for split in SPLITS:
            self._check_lengths(split, max_tokens)
        labels = {split: [item.label for item in self.items[split]] for split in SPLITS}
        tokens = {s: [[r.context, r.continuation, r.ends] for r in self._requests[s]] for s in SPLITS}
        self.fingerprint = hashlib.sha256(json.dumps([kind, labels, tokens]).encode()).hexdigest()

    def instances(self, split: Split) -> int:
        """Return the number of items in a split."""
        return len(self.items[split])

    def source(self, split: Split) -> str:  # noqa: ARG002
        """Return that both splits are dealt from the same items."""
        return "items of its own"

    def requests(self, split: Split) -> Sequence[Request]:
        """Return one request per item and choice, item by item."""
        return self._requests[split]

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:  # noqa: ARG002
        """Return nothing: the score says it all."""
        return {}

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield prompt, choices, label and the answers of each item."""
        for item, own in self._by_item(split, answers):
            yield {**asdict(item), "answers": [asdict(answer) for answer in own]}

    def _by_item(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> Iterator[tuple[Item, list[Answer]]]:
        items = self.items[split]
        ends = np.cumsum([len(item.choices) for item in items])
        for i in range(len(items)) if instances is None else instances:
            own = answers[ends[i] - len(items[i].choices) : ends[i]]
            yield items[i], [answer for answer in own if isinstance(answer, Answer)]

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the item of each request."""
        return np.repeat(np.arange(len(self.items[split])), [len(item.choices) for item in self.items[split]])

    def score(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return one score in [0, 1] per item."""
        scores = np.empty(len(self.items[split]) if instances is None else len(instances))
        for i, (item, own) in enumerate(self._by_item(split, answers, instances)):
            match self.kind:
                case "multiple_choice":
                    scores[i] = float(np.argmax([answer.logprob for answer in own]) == item.label)
                case "exact_match":
                    scores[i] = float(own[0].greedy)
                case "likelihood":
                    scores[i] = math.exp(own[0].logprob / own[0].tokens)
        return scores

    def _check_lengths(self, split: Split, max_tokens: int | None) -> None:
        for i, request in enumerate(self._requests[split]):
            if not request.continuation:
                raise InputError(f"task {self.name}: request {i} of the {split} split has an answer without tokens")
            length = len(request.context) + len(request.continuation)
            if max_tokens is not None and length > max_tokens:
                raise InputError(
                    f"task {self.name}: request {i} of the {split} split has {length} tokens; "
                    f"the model takes {max_tokens}"
                )


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a short answer: special tokens, and tokens that begin with a new line."""
    newline = ("\n", "\u010a", "<0x0A>")  # as text, in byte-level BPE, as a SentencePiece byte
    lines = {index for token, index in tokenizer.get_vocab().items() if token.startswith(newline)}
    return tuple(sorted(lines | set(tokenizer.all_special_ids)))


def encode(tokenizer: Any, prompt: str, answer: str, ends: tuple[int, ...] = ()) -> Request:
    """Tokenise prompt and answer together, then part them, as the EleutherAI harness does.

    Blanks at the prompt's end count to the answer, and an empty prompt becomes the begin-of-text (or end-of-text)
    token; a begin-of-text token is put first where the tokenizer does so by default.
    """
    stripped = prompt.rstrip()
    answer = prompt[len(stripped) :] + answer
    whole = tokenizer(stripped + answer, add_special_tokens=False).input_ids
    context = tokenizer(stripped, add_special_tokens=False).input_ids
    start = len(context)
    first: list[int] = []
    probe = tokenizer("a").input_ids
    if tokenizer.bos_token_id is not None and probe and probe[0] == tokenizer.bos_token_id:
        first = [tokenizer.bos_token_id]
    elif not context:
        token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        first = [token if token is not None else 0]
    return Request((*first, *whole[:start]), tuple(whole[start:]), ends)


def split_items(name: str, items: Sequence[Item], search: int, test: int) -> dict[Split, tuple[Item, ...]]:
    """Deal items into disjoint splits.

    Items whose prompts differ only in case and white space are one item (the first stays); see `splits.deal`.

    Raises:
        InputError: if there are fewer different items than asked for.
    """
    dealt = deal(name, [" ".join(item.prompt.casefold().split()) for item in items], None, search, test)
    return {split: tuple(items[i] for i in dealt[split]) for split in SPLITS}


def zoo_items(task: str) -> tuple[list[Item], Kind]:
    """Return the held-out items of one of the zoo's tasks and how they are scored.

    Raises:
        InputError: if there is no such task.
    """
    if task not in zoo.TASKS:
        known = ", ".join(zoo.TASKS)
        raise InputError(f"no task {task!r}{nearest(task, zoo.TASKS)}; built in are {known}; your own need data: FILE")
    return [_item(entry, zoo.KINDS[task]) for entry in zoo.held_out(task)], zoo.KINDS[task]


def read_items(path: Path, kind: Kind) -> list[Item]:
    """Read items from a JSON-lines file: ``prompt`` and ``answer``, or ``prompt``, ``choices`` and ``label``.

    Raises:
        InputError: if the file cannot be read, or listing the lines that are wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines also cuts at U+2028, which JSON allows
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot read items: {why}") from error
    items: list[Item] = []
    faults = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line), kind))
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}: not JSON: {error.msg}")
        except (ValueError, RecursionError) as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        more = [f"... and {len(faults) - 10} more lines"] if len(faults) > 10 else []
        raise InputError("\n".join([f"items for {kind} cannot be read:", *faults[:10], *more]))
    return items


def _item(entry: Any, kind: Kind) -> Item:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")
    needed = ("prompt", "choices", "label") if kind == "multiple_choice" else ("prompt", "answer")
    missing = [key for key in needed if key not in entry]
    if missing:
        near = nearest(missing[0], entry)
        if {"prompt", "choices", "label"} <= set(entry):
            near = "; it looks like an item of kind: multiple_choice"
        elif {"prompt", "answer"} <= set(entry):
            near = "; it looks like an item of kind: exact_match or likelihood"
        raise ValueError(f"expected {', '.join(needed)}; missing {', '.join(missing)}{near}")
    json.dumps(entry, ensure_ascii=False).encode()  # half a surrogate pair is no text: UnicodeEncodeError
    if not isinstance(entry["prompt"], str):
        raise ValueError(f"prompt: expected text, got {entry['prompt']!r}")
    if kind != "multiple_choice":
        if not isinstance(entry["answer"], str) or not entry["answer"]:
            raise ValueError(f"answer: expected non-empty text, got {entry['answer']!r}")
        return Item(entry["prompt"], (entry["answer"],))
    choices, label = entry["choices"], entry["label"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError(f"choices: expected two or more non-empty texts, got {choices!r}")
    if type(label) is not int or not 0 <= label < len(choices):
        raise ValueError(f"label: expected a whole number from 0 to {len(choices) - 1}, got {label!r}")
    return Item(entry["prompt"], tuple(choices), label)
