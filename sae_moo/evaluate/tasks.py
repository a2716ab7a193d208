"""Tasks over items, the zoo's and the user's own, with splits disjoint by content; what the house's kinds ask."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo import zoo
from sae_moo.errors import InputError, first_few, nearest, shown
from sae_moo.evaluate.guests import GuestTask
from sae_moo.evaluate.kinds import KINDS, OWN_ITEMS, Opening, TaskKind
from sae_moo.evaluate.splits import Identity, deal, plain, repeated
from sae_moo.evaluate.task import Answer, Answered, Asked, Metric, Request, Task
from sae_moo.files import json_lines
from sae_moo.objectives.scores import SPLITS, Split
from sae_moo.recipe.catalogue import blamed, resolved
from sae_moo.recipe.section import Section


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
    """A task over items, of a kind that says what is asked about an item and how the answers are judged.

    The house's kinds (`kinds.KINDS`): `multiple_choice` compares summed log probabilities (as the harness's ``acc``;
    the first wins a tie); `exact_match` finds out what greedy decoding would write with one teacher-forced forward
    pass; `likelihood` still separates models where accuracy is at chance.

    Args:
        name: the task's name.
        kind: name of the kind.
        splits: the items of the search and of the test split.
        tokenizer: a transformers tokenizer; items are tokenised once, here.
        max_tokens: longest prompt with answer that the model takes, or None.
        origin: where the items come from, in a few words.

    Raises:
        InputError: if an item is longer than `max_tokens`, an answer has no tokens, or there is no such kind.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        splits: Mapping[Split, Sequence[Any]],
        tokenizer: Any,
        max_tokens: int | None = None,
        settings: Section | None = None,
        origin: str = OWN_ITEMS,
    ) -> None:
        row = KINDS.find(kind)
        own = {} if settings is None else {"settings": settings}
        self.name = name
        self.kind = row.name
        self._origin = origin
        self.items = {split: tuple(splits[split]) for split in SPLITS}
        self._score = partial(resolved(row.score), **own)
        ask = partial(resolved(row.ask), **own)
        asked = {split: [tuple(each) for each in ask(self.items[split], tokenizer)] for split in SPLITS}
        self._requests: dict[Split, tuple[Asked, ...]] = {
            split: tuple(request for each in asked[split] for request in each) for split in SPLITS
        }
        self._ends = {split: np.cumsum([0, *map(len, asked[split])]) for split in SPLITS}
        for split in SPLITS:
            self._check_lengths(split, max_tokens)
        rules = {split: [_rule(item) for item in self.items[split]] for split in SPLITS}
        tokens = {split: [_facts(request) for request in self._requests[split]] for split in SPLITS}
        self.fingerprint = hashlib.sha256(
            json.dumps([self.kind, rules, tokens, *(each.model_dump() for each in own.values())]).encode()
        ).hexdigest()

    def instances(self, split: Split) -> int:
        """Return the number of items in a split."""
        return len(self.items[split])

    def source(self, split: Split) -> str:  # noqa: ARG002
        """Return where the items of both splits come from."""
        return self._origin

    def requests(self, split: Split) -> Sequence[Asked]:
        """Return the requests about each item, item by item."""
        return self._requests[split]

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:  # noqa: ARG002
        """Return nothing: the score says it all."""
        return {}

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield what an item holds and the answers about it: log probabilities, or what was written."""
        for item, own in self._by_item(split, answers):
            told = [asdict(answer) if isinstance(answer, Answer) else answer for answer in own]
            yield {**asdict(item), "answers": told}

    def _by_item(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> Iterator[tuple[Any, list[Answered]]]:
        items, ends = self.items[split], self._ends[split]
        for i in range(len(items)) if instances is None else instances:
            yield items[i], [answer for answer in answers[ends[i] : ends[i + 1]] if answer is not None]

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the item of each request."""
        return np.repeat(np.arange(len(self.items[split])), np.diff(self._ends[split]))

    def score(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return one score in [0, 1] per item."""
        found = [float(self._score(item, own)) for item, own in self._by_item(split, answers, instances)]
        return np.array(found, dtype=np.float64)

    def _check_lengths(self, split: Split, max_tokens: int | None) -> None:
        for i, request in enumerate(self._requests[split]):
            if isinstance(request, Request) and not request.continuation:
                raise InputError(f"task {self.name}: request {i} of the {split} split has an answer without tokens")
            wanted = len(request.continuation) if isinstance(request, Request) else request.tokens
            length = len(request.context) + wanted
            if max_tokens is not None and length > max_tokens:
                raise InputError(
                    f"task {self.name}: request {i} of the {split} split has {length} tokens; "
                    f"the model takes {max_tokens}"
                )


def _facts(request: Asked) -> list[Any]:
    """Return what a request holds, as JSON can."""
    if isinstance(request, Request):
        return [request.context, request.continuation, request.ends]
    return [request.context, request.tokens, request.stops]


def _rule(item: Any) -> Any:
    """Return what of an item says how its answers are judged, beside what is asked."""
    return item.label if isinstance(item, Item) else json.loads(json.dumps(asdict(item), default=str))


def item_task(opening: Opening) -> ItemTask:
    """Make a task over items."""
    return ItemTask(
        opening.name,
        opening.kind.name,
        opening.splits,
        opening.tokenizer,
        opening.longest,
        settings=opening.settings,
        origin=opening.origin,
    )


def open_task(opening: Opening) -> Task:
    """Make a task of any kind.

    Raises:
        InputError: if it cannot be made of that; of a guest's kind, naming the guest.
    """
    kind = opening.kind
    with blamed(kind, f"task {opening.name}: {kind.name}", InputError):
        task: Task = resolved(kind.make)(opening)
    return task if kind.guest is None else GuestTask(task, kind)


def each_choice(items: Sequence[Item], tokenizer: Any) -> list[list[Request]]:
    """Ask how likely each choice of an item is."""
    return [[encode(tokenizer, item.prompt, choice) for choice in item.choices] for item in items]


def answer_that_ends(items: Sequence[Item], tokenizer: Any) -> list[list[Request]]:
    """Ask whether greedy decoding writes the answer of an item and ends."""
    ends = end_tokens(tokenizer)
    return [[encode(tokenizer, item.prompt, choice, ends) for choice in item.choices] for item in items]


def likeliest_is_right(item: Item, answers: Sequence[Answer]) -> float:
    """Return whether the right choice has the highest log probability; the first wins a tie."""
    return float(np.argmax([answer.logprob for answer in answers]) == item.label)


def is_written(item: Item, answers: Sequence[Answer]) -> float:  # noqa: ARG001
    """Return whether greedy decoding writes the answer and ends."""
    return float(answers[0].greedy)


def probability(item: Item, answers: Sequence[Answer]) -> float:  # noqa: ARG001
    """Return the geometric mean probability of the answer's tokens."""
    return math.exp(answers[0].logprob / answers[0].tokens)


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


def split_items(name: str, items: Sequence[Any], search: int, test: int) -> dict[Split, tuple[Any, ...]]:
    """Deal items into disjoint splits.

    Items that are equal in all they hold are one item (the first stays); see `splits.deal`.

    Raises:
        InputError: if there are fewer different items than asked for.
    """
    dealt = deal(name, _identities(items), None, search, test)
    return {split: tuple(items[i] for i in dealt[split]) for split in SPLITS}


def origin_of(items: Sequence[Any]) -> str:
    """Return in a few words where the items of a task come from, and how many were left out."""
    again = repeated(_identities(items))
    return OWN_ITEMS if not again else f"{OWN_ITEMS}, {again} of {len(items)} left out: the same as others"


def _identities(items: Sequence[Any]) -> list[Identity]:
    return [Identity(plain(item.prompt), json.dumps(asdict(item), sort_keys=True, default=str)) for item in items]


def zoo_items(task: str) -> tuple[list[Item], str]:
    """Return the held-out items of one of the zoo's tasks and the name of their kind.

    Raises:
        InputError: if there is no such task.
    """
    if task not in zoo.TASKS:
        known = ", ".join(zoo.TASKS)
        raise InputError(f"no task {task!r}{nearest(task, zoo.TASKS)}; built in are {known}; your own need data: FILE")
    kind = KINDS[zoo.KINDS[task]]
    return [_item(entry, kind) for entry in zoo.held_out(task)], kind.name


def read_items(path: Path, kind: str) -> list[Any]:
    """Read items of a kind from a file of JSON objects with the fields that the kind needs: one a line, or in one list.

    Raises:
        InputError: if the file cannot be read, or listing the first of the items that are wrong.
    """
    row = KINDS.find(kind)
    items, faults = json_lines.read(path, "items", lambda entry: _item(entry, row))
    if faults:
        raise InputError("\n".join([f"items for {row.name} cannot be read:", *first_few(faults)]))
    return items


def _item(entry: Any, kind: TaskKind) -> Any:
    """Return the item of a kind that a JSON object describes.

    Raises:
        ValueError: saying what was expected.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")
    missing = [key for key in kind.fields if key not in entry]
    if missing:
        near = nearest(missing[0], entry)
        fitting = next((row.fields for row in KINDS.values() if set(row.fields) <= set(entry)), None)
        if fitting is not None:
            kinds = " or ".join(name for name, row in KINDS.items() if row.fields == fitting)
            near = f"; it looks like an item of kind: {kinds}"
        raise ValueError(f"expected {', '.join(kind.fields)}; missing {', '.join(missing)}{near}")
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise ValueError(f"expected text, got half a character: {error.reason}") from error
    if not isinstance(entry["prompt"], str):
        raise ValueError(f"prompt: expected text, got {shown(entry['prompt'])}")
    with blamed(kind, kind.name, InputError):
        try:
            item = resolved(kind.item)(entry)
        except ValueError as error:  # about the item, whoever's kind it is
            raise InputError(str(error)) from error
        if not is_dataclass(item) or getattr(item, "prompt", None) != entry["prompt"]:
            raise TypeError(f"expected an item to be a dataclass with its prompt, got {item!r}")
    return item


def answer_item(entry: Mapping[str, Any]) -> Item:
    """Return an item with one answer.

    Raises:
        ValueError: saying what was expected.
    """
    if not isinstance(entry["answer"], str) or not entry["answer"]:
        raise ValueError(f"answer: expected non-empty text, got {shown(entry['answer'])}")
    return Item(entry["prompt"], (entry["answer"],))


def choice_item(entry: Mapping[str, Any]) -> Item:
    """Return an item with choices of which one is right.

    Raises:
        ValueError: saying what was expected.
    """
    choices, label = entry["choices"], entry["label"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError(f"choices: expected two or more non-empty texts, got {shown(choices)}")
    if isinstance(label, float) and label.is_integer():  # to JSON 1.0 and 1 are one number, and tables write the former
        label = int(label)
    if type(label) is not int or not 0 <= label < len(choices):
        meant = _meant(label, choices)
        raise ValueError(f"label: expected a whole number from 0 to {len(choices) - 1}, got {shown(label)}{meant}")
    if choices.count(choices[label]) > 1:
        raise ValueError(f"choices: expected the right choice once, {shown(choices[label])} comes again")
    return Item(entry["prompt"], tuple(choices), label)


def _meant(label: Any, choices: Sequence[str]) -> str:
    """Return which number a label stands for that is a letter, a text of digits, or the right choice itself."""
    if not isinstance(label, str):
        return ""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    texts = [choice.strip() for choice in choices]
    for known in (texts, list(letters), [str(i) for i in range(len(choices))]):
        if label.strip() in known:
            return f" (did you mean {known.index(label.strip())}?)"
    return ""
