"""The house's kinds of tasks hold what every task promises, and so do guests', the harness's, and anchors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import acme_tasks
import pytest
import torch
import yaml
from elsewhere import DEVICE, Elsewhere
from guests import installed

from sae_moo import zoo
from sae_moo.errors import InputError
from sae_moo.evaluate.anchors import AnchoredTask
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.hardware import PASSES
from sae_moo.evaluate.kinds import HARNESS, KINDS, Opening
from sae_moo.evaluate.scorer import Scorer
from sae_moo.evaluate.sizes import BatchSizes
from sae_moo.evaluate.task import Prompt
from sae_moo.evaluate.tasks import open_task
from sae_moo.experts.live import load_model
from sae_moo.experts.vocabulary import load_tokenizer
from sae_moo.recipe.catalogue import resolved
from sae_moo.testing.tasks import ENTRIES, SEARCH, TEST, TaskContract


@pytest.fixture(scope="module", autouse=True)
def acme(tmp_path_factory):
    """A package with task kinds of its own."""
    folder = tmp_path_factory.mktemp("site")
    installed(folder, "acme", "1.2", Path(acme_tasks.__file__).read_text(), acme_tasks.POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("acme", None)


class AskedElsewhere(TaskContract):
    """What a task also holds on a device that is not the CPU."""

    @pytest.mark.parametrize("tokens", [4096, 1])
    def test_a_part_is_fetched_once_however_many_passes_it_takes(self, task, model, tokens):
        sizes = BatchSizes("cpu", {PASSES.what: tokens})
        tokenizer = load_tokenizer(zoo.checkpoint("base"))
        prompts = any(isinstance(request, Prompt) for request in task.requests("search"))
        here = [*Scorer([task], "cpu", tokenizer, blocks=2, sizes=sizes).score_parts(model, "search")]
        passes = []
        with Elsewhere() as elsewhere:
            there = elsewhere.moved(load_model(zoo.checkpoint("base"), torch.float32, "cpu"))
            there.register_forward_hook(lambda *_: passes.append(1))
            scorer = Scorer([task], DEVICE, tokenizer, blocks=2, sizes=sizes)
            list(scorer.score_parts(there, "search"))  # how it may be asked is found out with the first candidate
            passes.clear()
            elsewhere.waits.clear()
            elsewhere.sends.clear()
            found = [*scorer.score_parts(there, "search")]
        waits = sum(times for place, times in elsewhere.waits.items() if not prompts or place.startswith("evaluate/"))
        sends = [place for place in elsewhere.sends if place.startswith("evaluate/") and "_stepwise" not in place]
        assert [part["mine"].tolist() for part in found] == [part["mine"].tolist() for part in here]
        assert waits == (len(passes) if prompts else 2), (
            "one a part; one a step where what is written decides who goes on"
        )
        assert not sends, "inputs stay there"
        assert tokens > 1 or len(passes) > 3


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind(AskedElsewhere):
    @pytest.fixture(autouse=True)
    def chosen(self, kind):
        self.kind = kind


class TestAnchors(AskedElsewhere):
    kind = "likelihood"

    def made(self, folder, entries, search=SEARCH, test=TEST):
        whole = super().made(folder, entries, search, test)
        return AnchoredTask(whole, range(0, search, 2))


class TestAGuestsKind(AskedElsewhere):
    kind = "acme/regex_match"

    def entry(self, number):
        return {"prompt": f"{number} and {number % 7} is", "pattern": rf"\b{number % 10}"}


class TestAGuestsOwnTask(AskedElsewhere):
    kind = "acme/loud"


class TestAGuestsKindWithSettings(AskedElsewhere):
    kind = "acme/long"
    settings = {"tokens": 4}  # noqa: RUF012


class HarnessContract(AskedElsewhere):
    """The harness's tasks read no items of one's own: documents and a YAML lie beside each other."""

    described: ClassVar[dict[str, Any]]

    def fields(self):
        return ()

    def entry(self, number):
        return {"question": f"{number} and {number % 7}", "answer": f"{number + number % 7}"}

    def made(self, folder, entries, search=SEARCH, test=TEST):
        (folder / "docs.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        files = {"data_files": {"test": str(folder / "docs.jsonl")}}
        task = {"task": "ours", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        task |= {"doc_to_text": "{{question}} is", "doc_to_target": " {{answer}}", **self.described}
        (folder / "ours.yaml").write_text(yaml.safe_dump(task))
        section = TaskSection(name="mine", task="ours", include="ours.yaml", search=search, test=test)
        return open_task(
            Opening(
                name="mine",
                kind=HARNESS,
                search=search,
                test=test,
                tokenizer=load_tokenizer(zoo.checkpoint("base")),
                folder=zoo.checkpoint("base"),
                longest=None,
                directory=folder,
                keys={key: getattr(section, key) for key in HARNESS.keys},
            )
        )


MEAN = {"aggregation": "mean", "higher_is_better": True}


class TestHarnessThatScores(HarnessContract):
    described = {"output_type": "loglikelihood", "metric_list": [{"metric": "acc", **MEAN}]}  # noqa: RUF012


class TestHarnessThatWrites(HarnessContract):
    described = {  # noqa: RUF012
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    }


@pytest.mark.parametrize("row", [*KINDS.values(), HARNESS], ids=lambda row: row.name)
def test_rows_name_what_is_there(row):
    assert callable(resolved(row.make))
    assert all(callable(resolved(place)) for place in (row.item, row.ask, row.score) if place)
    assert set(row.keys) <= set(TaskSection.model_fields)
    assert bool(row.fields) == (row is not HARNESS)


def test_the_configuration_asks_the_rows_without_torch():
    code = "import sys, sae_moo.config.document; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("acme/broken", "items.jsonl:1: acme/broken: acme 1.2 failed: KeyError: 'nothing'"),
        ("acme/silent", "task mine: acme/silent of acme 1.2: search split: expected requests for each of 9 instances, got some for 0"),
        ("acme/failing", "task mine: acme/failing: acme 1.2 failed: KeyError: 'graph'"),
    ],
)  # fmt: skip
def test_a_guest_that_fails_is_named(tmp_path, kind, told):
    suite = TaskContract()
    suite.kind = kind
    with pytest.raises(InputError, match=re.escape(told)):
        suite.made(tmp_path, [suite.entry(i) for i in range(ENTRIES)])


def test_faults_of_a_guests_items_are_told_by_line(tmp_path):
    suite = TestAGuestsKind()
    entries = [suite.entry(i) for i in range(ENTRIES)]
    entries[4]["pattern"] = "("
    with pytest.raises(InputError, match=r"items\.jsonl:5: pattern: expected a regular expression, got '\('"):
        suite.made(tmp_path, entries)


def test_another_version_of_a_guest_is_another_task(tmp_path, monkeypatch):
    suite = TestAGuestsKind()
    entries = [suite.entry(i) for i in range(ENTRIES)]
    row = KINDS.find(suite.kind)
    before = suite.made(tmp_path, entries).fingerprint
    monkeypatch.setitem(KINDS._guests, suite.kind, replace(row, guest=replace(row.guest, version="1.3")))
    assert suite.made(tmp_path, entries).fingerprint != before
