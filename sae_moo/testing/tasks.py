"""What every task promises.

A package that offers a kind of task runs the suite by ``class TestMine(TaskContract): kind = "acme/regex_match"``, and
says by a method ``entry`` what an item looks like if its fields are its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate.kinds import KINDS, Opening
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.task import Answer, Answered, Request, Task
from sae_moo.evaluate.tasks import open_task, read_items, split_items
from sae_moo.experts.live import load_model
from sae_moo.experts.vocabulary import load_tokenizer
from sae_moo.objectives.scores import SPLITS, Split

ENTRIES = 24
SEARCH, TEST = 9, 6


class TaskContract:
    """What every task promises, on the embedded base model.

    Attributes:
        kind: name of the kind.
        settings: what stands under ``settings`` of the task in a configuration.
    """

    kind: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def entry(self, number: int) -> dict[str, Any]:
        """Return an item as a line of the file holds it; other numbers, other prompts."""
        known: dict[str, Any] = {
            "prompt": f"{number} and {number % 7} is",
            "answer": f" {number + number % 7}",
            "choices": [f" {number}", f" {number + 1 + number % 7}", " no"],
            "label": number % 3,
        }
        own = sorted({*self.fields()} - {*known})
        assert not own, f"items of {self.kind} have {', '.join(own)}: expected a method `entry` that makes one"
        return {key: known[key] for key in self.fields()}

    def fields(self) -> tuple[str, ...]:
        """Return what an item must hold; nothing where a task reads no items of one's own."""
        return KINDS.find(self.kind).fields

    def made(self, folder: Path, entries: Sequence[Any], search: int = SEARCH, test: int = TEST) -> Task:
        """Return the task over items, as the product makes it."""
        row = KINDS.find(self.kind)
        path = folder / "items.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        return open_task(
            Opening(
                name="mine",
                kind=row,
                search=search,
                test=test,
                tokenizer=load_tokenizer(zoo.checkpoint("base")),
                folder=zoo.checkpoint("base"),
                longest=None,
                directory=folder,
                splits=split_items("mine", read_items(path, self.kind), search, test) if row.fields else {},
                settings=None if row.settings is None else row.settings.model_validate(self.settings),
            )
        )

    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        """A task with a search and a test split."""
        return self.made(tmp_path, [self.entry(i) for i in range(ENTRIES)])

    @pytest.fixture
    def again(self, tmp_path: Path) -> Task:
        """The same task, made anew."""
        return self.made(tmp_path, [self.entry(i) for i in range(ENTRIES)])

    @pytest.fixture
    def model(self) -> Any:
        """The embedded base model."""
        return load_model(zoo.checkpoint("base"), torch.float32, "cpu")

    def answers(self, task: Task, split: Split, seed: int = 0) -> list[Answered]:
        """Return made-up answers to the requests of a split."""
        rng = np.random.default_rng(seed)
        return [
            Answer(-float(rng.exponential(3.0)), len(request.continuation), bool(rng.random() < 0.5))
            if isinstance(request, Request)
            else str(rng.choice(["", " 7", "no idea", "The answer is 12.\n"]))
            for request in task.requests(split)
        ]

    def test_requests_and_their_order_never_change(self, task: Task, again: Task) -> None:
        for split in SPLITS:
            assert list(task.requests(split)) == list(task.requests(split)) == list(again.requests(split))
            assert task.owners(split).tolist() == again.owners(split).tolist()
            assert task.instances(split) == again.instances(split)

    def test_every_instance_is_asked_and_every_request_is_an_instances(self, task: Task) -> None:
        for split in SPLITS:
            owners = task.owners(split)
            assert len(owners) == len(task.requests(split))
            assert set(owners.tolist()) == set(range(task.instances(split)))
            assert all(request.context for request in task.requests(split))

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("seed", range(4))
    def test_scores_are_one_for_each_instance_from_0_to_1(self, task: Task, split: Split, seed: int) -> None:
        scores = task.score(split, self.answers(task, split, seed))
        assert scores.dtype == np.float64
        assert scores.shape == (task.instances(split),)
        assert ((scores >= 0) & (scores <= 1)).all()

    @pytest.mark.parametrize("split", SPLITS)
    def test_scores_are_a_function_of_the_answers(self, task: Task, again: Task, split: Split) -> None:
        answers = self.answers(task, split)
        first = task.score(split, answers)
        task.score(split, self.answers(task, split, seed=1))
        assert task.score(split, answers).tolist() == again.score(split, answers).tolist() == first.tolist()

    @pytest.mark.parametrize("split", SPLITS)
    def test_a_part_is_scored_as_in_the_whole_by_its_own_answers(self, task: Task, split: Split) -> None:
        answers: list[Answered] = self.answers(task, split)
        whole, owners = task.score(split, answers), task.owners(split)
        for chosen in ([], [task.instances(split) - 1], list(range(task.instances(split)))[::-2]):
            own = [answer if owner in chosen else None for answer, owner in zip(answers, owners.tolist(), strict=True)]
            assert task.score(split, own, chosen).tolist() == whole[chosen].tolist()

    def test_scores_of_a_model_are_the_same_in_any_batches(self, task: Task, model: Any) -> None:
        tokenizer = load_tokenizer(zoo.checkpoint("base"))
        whole = Scorer([task], "cpu", tokenizer).score(model, "search")[task.name]
        parted = Scorer([task], "cpu", tokenizer, blocks=3)
        found = np.full(len(whole), math.nan)
        for part, scores in zip(parted.order("search"), parted.score_parts(model, "search"), strict=True):
            found[part[task.name]] = scores[task.name]
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4)

    def test_splits_share_no_prompt(self, task: Task) -> None:
        search, test = ({request.context for request in task.requests(split)} for split in SPLITS)
        assert search
        assert test
        assert not search & test

    def test_the_fingerprint_changes_with_items_and_splits(self, task: Task, again: Task, tmp_path: Path) -> None:
        entries = [self.entry(i) for i in range(ENTRIES)]
        others = [
            self.made(tmp_path, [self.entry(i) for i in range(1, ENTRIES + 1)]),
            self.made(tmp_path, entries, search=SEARCH + 1),
            self.made(tmp_path, entries, test=TEST + 1),
        ]
        assert again.fingerprint == task.fingerprint
        assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 4

    def test_each_field_of_an_item_is_in_the_fingerprint(self, task: Task, tmp_path: Path) -> None:
        entries = [self.entry(i) for i in range(ENTRIES)]
        for key in self.fields():
            changed = [{**entry, key: self.entry(ENTRIES + 1 + i)[key]} for i, entry in enumerate(entries)]
            assert self.made(tmp_path, changed).fingerprint != task.fingerprint, key

    def test_what_is_told_of_instances_is_json_and_one_for_each(self, task: Task) -> None:
        for split in SPLITS:
            answers = self.answers(task, split)
            samples = list(task.samples(split, answers))
            assert len(samples) == task.instances(split)
            assert json.loads(json.dumps(samples))
            assert task.source(split)
            for metric in task.metrics(split, answers).values():
                assert math.isfinite(metric.value)
                assert metric.stderr is None or metric.stderr >= 0

    def test_items_that_lack_a_field_are_refused_with_their_lines(self, tmp_path: Path) -> None:
        for key in self.fields():
            entries = [self.entry(i) for i in range(ENTRIES)]
            del entries[3][key]
            with pytest.raises(InputError, match=rf"items\.jsonl:4: expected .*; missing {key}"):
                self.made(tmp_path, entries)
