"""A task, or a group of tasks, of the EleutherAI harness as a task of a search: its prompts, metrics and filters.

The harness builds prompts and judges answers; what lies between is ours. All is built once for each process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_moo.errors import InputError, nearest
from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.asking import TaskSection
from sae_moo.evaluate.documents import Place, canonical, identities, none_of
from sae_moo.evaluate.kinds import Opening
from sae_moo.evaluate.lm_eval import Documents
from sae_moo.evaluate.splits import deal, repeated
from sae_moo.evaluate.task import Answer, Answered, Asked, Metric, Request
from sae_moo.files.places import located
from sae_moo.objectives.scores import SPLITS, Split

log = logging.getLogger(__name__)

PER_WORD = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(slots=True)
class _Instance:
    """One document's requests in the harness's terms, and where ours for them are.

    Args:
        leaf: index of the harness task.
        doc: the document.
        doc_id: its number among the documents it comes from.
        requests: the harness's.
        parts: per harness request, where its part of our requests begins and ends.
    """

    leaf: int
    doc: Any
    doc_id: int
    requests: list[Any]
    parts: list[tuple[int, int]]


class HarnessTask:
    """A task, or a group of tasks, of the harness as a task of a search.

    An instance is a document. Its score is the chosen metric where that is a number in [0, 1]; perplexities, which are
    no score of an item, count as the geometric mean probability per word or byte (per target for ``perplexity``), and
    so larger is better. A group's score is the mean over the instances of all its tasks.

    Args:
        section: how it is asked.
        tokenizer: of the models.
        folder: the base model's; its configuration says how much it reads at once.
        directory: where a relative `include` starts from; None: the current folder.

    Attributes:
        name: see `TaskSection`.
        fingerprint: of prompts, documents and rules of scoring.

    Raises:
        InputError: if there is no such task, its documents cannot be had, or it cannot be scored item by item.
    """

    def __init__(self, section: TaskSection, tokenizer: Any, folder: Path, directory: Path | None = None) -> None:
        self.name = section.name
        self._section = section
        include = None
        if section.include is not None:
            include = located(section.include, directory).resolve()
        with lm_eval.quiet():
            self._leaves = lm_eval.loaded(
                section.name, section.name_in_harness, include, section.fewshot, section.generation
            )
            if section.chat_template and not getattr(tokenizer, "chat_template", None):
                raise InputError(f"task {self.name}: chat_template: the base's tokenizer has none")
            reader = lm_eval.reader(tokenizer, folder)
            self._metric, self._filter = zip(*[self._chosen(leaf) for leaf in self._leaves], strict=True)
            self._sources, chosen = self._dealt()
            self._asked: dict[Split, list[Asked]] = {split: [] for split in SPLITS}
            self._instances: dict[Split, list[_Instance]] = {split: [] for split in SPLITS}
            for split in SPLITS:
                for index, leaf in enumerate(self._leaves):
                    self._built(split, index, leaf, reader, chosen)
            self._try_out()
        self.fingerprint = self._identity()
        cut = reader.cut.total()
        if cut:
            log.warning(
                "%s: %d prompts are longer than the %d tokens that the model reads and lose their beginning, as in the "
                "harness",
                self.name,
                cut,
                reader.max_length,
            )
        if "test" in self._sources["search"].partition(" documents ")[0].split():
            log.warning(
                "%s: the search optimizes on documents of the benchmark's test split; report no score on the whole "
                "benchmark for what it finds (the test split of this study shares no document with the search)",
                self.name,
            )

    def instances(self, split: Split) -> int:
        """Return the number of documents in a split."""
        return len(self._instances[split])

    def source(self, split: Split) -> str:
        """Return which of the harness's documents a split was dealt from."""
        return self._sources[split]

    def requests(self, split: Split) -> Sequence[Asked]:
        """Return all requests, document by document."""
        return self._asked[split]

    def owners(self, split: Split) -> NDArray[np.int64]:
        """Return the document of each request."""
        lengths = [sum(end - start for start, end in instance.parts) for instance in self._instances[split]]
        return np.repeat(np.arange(len(lengths)), lengths)

    def score(
        self, split: Split, answers: Sequence[Answered | None], instances: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return the chosen metric of every document."""
        own = self._instances[split] if instances is None else [self._instances[split][i] for i in instances]
        return np.array(
            [
                self._score(instance.leaf, metrics[self._filter[instance.leaf]])
                for instance, metrics in zip(own, self._judge(own, answers), strict=True)
            ]
        )

    def metrics(self, split: Split, answers: Sequence[Answered]) -> dict[str, Metric]:
        """Return every metric under every filter as the harness aggregates it, named ``metric,filter``.

        In a group, names begin with the task's: ``task/metric,filter``. What these answers give no number of is told
        and left out.
        """
        collected: dict[tuple[int, str, str], list[Any]] = defaultdict(list)
        for instance, metrics in zip(self._instances[split], self._judged(split, answers), strict=True):
            for chosen, found_here in metrics.items():
                for metric, value in found_here.items():
                    collected[instance.leaf, metric, chosen].append(value)
        found = {}
        for (index, metric, chosen), values in collected.items():
            leaf = self._leaves[index]
            prefix = f"{leaf.task_name}/" if len(self._leaves) > 1 else ""
            name = f"{prefix}{metric},{chosen}"
            try:
                found[name] = lm_eval.aggregated(leaf, metric, values)
            except ValueError as error:
                log.warning(
                    "task %s: no %s over its %d %s items: %s; the other metrics are told",
                    self.name,
                    name,
                    len(values),
                    split,
                    error,
                )
        return found

    def samples(self, split: Split, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """Yield document, prompts, responses and metrics of every instance."""
        judged = self._judged(split, answers)
        for instance, metrics in zip(self._instances[split], judged, strict=True):
            leaf = self._leaves[instance.leaf]
            responses = [self._response(request, answers, part) for request, part in _pairs(instance)]
            document = {
                "task": leaf.task_name,
                "doc_id": instance.doc_id,
                "doc": instance.doc,
                "target": leaf.doc_to_target(instance.doc),
                "arguments": [list(request.args) for request in instance.requests],
                "resps": responses,
                "metrics": metrics,
            }
            yield json.loads(json.dumps(document, default=str))

    def _chosen(self, leaf: Any) -> tuple[str, str]:
        """Return the metric and the filter that make a task's score."""
        metrics, filters = list(leaf.aggregation()), lm_eval.filters(leaf)
        found = []
        for what, wanted, known in (
            ("metric", self._section.metric, metrics),
            ("filter", self._section.filter, filters),
        ):
            if wanted is not None and wanted not in known:
                there = ", ".join(map(repr, known)) or "not any"
                raise InputError(
                    f"task {self.name}: {leaf.task_name} has no {what} {wanted!r}{nearest(wanted, known)}; "
                    f"it has {there}"
                )
            if not known:
                raise InputError(f"task {self.name}: {leaf.task_name} has no {what}: there is nothing to score by")
            found.append(wanted if wanted is not None else known[0])
        metric, chosen = found
        for each, aggregate in leaf.aggregation().items():
            if not callable(aggregate):
                raise InputError(f"task {self.name}: {leaf.task_name} has an unknown aggregation for {each}")
        if metric not in (*PER_WORD, "perplexity") and not leaf.higher_is_better().get(metric, True):
            raise InputError(
                f"task {self.name}: of {metric} less is better; a score is to be maximized. {leaf.task_name} has "
                f"{', '.join(metrics)}"
            )
        return metric, chosen

    def _score(self, index: int, values: Mapping[str, Any]) -> float:
        metric = self._metric[index]
        if metric not in values:
            raise InputError(f"task {self.name}: no {metric} for an item; it has {', '.join(values)}: set metric")
        value = values[metric]
        if metric in PER_WORD:
            logprob, weight = value
            return float(np.exp(logprob / max(weight, 1)))
        if metric == "perplexity":
            return float(np.exp(value))
        if isinstance(value, (bool, int, float, np.integer, np.floating)) and 0 <= float(value) <= 1:
            return float(value)
        raise InputError(
            f"task {self.name}: {metric} of an item is {value!r}, expected a number from 0 to 1; other metrics: "
            f"{', '.join(each for each in values if each != metric) or 'none'}"
        )

    def _dealt(self) -> tuple[dict[Split, str], list[dict[Split, tuple[Documents, list[int]]]]]:
        """Choose the documents of both splits; return where they come from in words, and their numbers per task."""
        pools: dict[Split, list[Place]] = {split: [] for split in SPLITS}
        where: list[dict[Split, Documents]] = []
        for index, leaf in enumerate(self._leaves):
            own: dict[Split, Documents] = {"test": "test" if leaf.has_test_docs() else "validation"}
            own["search"] = self._searched(leaf, own["test"])
            where.append(own)
            for split in SPLITS:
                documents = lm_eval.documents(self.name, leaf, own[split])
                pools[split] += [Place(index, number, doc) for number, doc in enumerate(documents)]
        same = all(own["search"] == own["test"] for own in where)
        items = identities(self._leaves, {"test": pools["test"]} if same else pools)
        items.setdefault("search", items["test"])
        try:
            dealt = deal(
                self.name, items["search"], None if same else items["test"], self._section.search, self._section.test
            )
        except InputError as error:
            raise InputError(error.message + self._others(where)) from error
        chosen: list[dict[Split, tuple[Documents, list[int]]]] = [
            {split: (own[split], []) for split in SPLITS} for own in where
        ]
        for split in SPLITS:
            for place in (pools[split][i] for i in dealt[split]):
                chosen[place.leaf][split][1].append(place.number)
        for own_chosen in chosen:
            for _, numbers in own_chosen.values():
                numbers.sort()
        called = ", ".join(leaf.task_name for leaf in self._leaves[:3]) + (", ..." if len(self._leaves) > 3 else "")
        words: dict[Split, str] = {}
        for split in SPLITS:
            kinds = " and ".join(dict.fromkeys(own[split] for own in where))
            again = repeated(items[split])
            of_all = f"{len(pools[split])}" + (f", {again} of them left out: the same as others" if again else "")
            words[split] = f"{kinds} documents of {called} ({len(dealt[split])} of {of_all})"
        return words, chosen

    def _others(self, where: Sequence[Mapping[Split, Documents]]) -> str:
        """Return which other documents a search could take, for an error."""
        having = [{kind for kind, has in lm_eval.kinds(leaf).items() if has} for leaf in self._leaves]
        others = set.intersection(*having) - {own["search"] for own in where}
        return f"; documents: {' or '.join(sorted(others))} searches on others" if others else ""

    def _searched(self, leaf: Any, tested: Documents) -> Documents:
        having = lm_eval.kinds(leaf)
        wanted = self._section.documents
        if wanted is not None:
            if not having[wanted]:
                there = ", ".join(kind for kind, has in having.items() if has)
                raise InputError(f"task {self.name}: {leaf.task_name} has no {wanted} documents; it has {there}")
            return wanted
        for kind in ("validation", "train"):
            if having[kind] and kind != tested and not lm_eval.reserved(self.name, leaf, kind):
                return kind
        return tested

    def _built(
        self,
        split: Split,
        index: int,
        leaf: Any,
        reader: Any,
        chosen: Sequence[Mapping[Split, tuple[Documents, list[int]]]],
    ) -> None:
        """Build the requests of one task and split."""
        kind, numbers = chosen[index][split]
        if not numbers:
            return
        documents = lm_eval.documents(self.name, leaf, kind)
        shots = int(leaf.config.num_fewshot or 0)
        tested, held = chosen[index]["test"]
        rules: list[Callable[[Any], bool]] = []
        source = lm_eval.example_split(leaf)
        if split == "search" and source is not None:
            # the harness keeps only a test document out of its own examples: here neither the search's own documents
            # nor those it will be judged by may stand in its prompts
            seen = [documents[number] for number in numbers]
            seen += [lm_eval.documents(self.name, leaf, tested)[number] for number in held]
            rules = none_of(leaf, seen)
            if source not in (lm_eval.split_of(leaf, kind), lm_eval.split_of(leaf, tested)):
                rules.append(lambda doc: True)  # examples of another split are for this
        error = (
            f"task {self.name}: {shots} few-shot examples, but only {{left}} documents are left for them beside the "
            f"{len(numbers)} of the search and the {len(held)} of the test split; the harness draws from {{needed}}"
        )
        with lm_eval.examples(leaf, rules, error) as rule:
            if rule == 2:
                log.warning(
                    "task %s: among the %s documents that are few-shot examples of %s are some of the search or the "
                    "test split, and too few others",
                    self.name,
                    source,
                    leaf.task_name,
                )
            for number in numbers:
                with self._named(leaf, number):
                    self._add(split, index, number, documents[number], reader)

    def _add(self, split: Split, index: int, number: int, doc: Any, reader: Any) -> None:
        """Build the requests of one document."""
        section, leaf = self._section, self._leaves[index]
        shots = int(leaf.config.num_fewshot or 0)
        template = reader.apply_chat_template if section.chat_template else None
        context = leaf.fewshot_context(
            doc,
            num_fewshot=shots,
            system_instruction=section.system_prompt,
            apply_chat_template=section.chat_template,
            fewshot_as_multiturn=section.in_turns,
            chat_template=template,
            gen_prefix=leaf.doc_to_prefix(doc),
        )
        made = leaf.construct_requests(
            doc=doc,
            ctx=context,
            metadata=(leaf.task_name, number, leaf.config.repeats),
            apply_chat_template=section.chat_template,
            chat_template=template,
        )
        requests = made if isinstance(made, list) else [made]
        instance = _Instance(index, doc, number, requests, [])
        for request in requests:
            ours = reader.read(self.name, request)
            instance.parts.append((len(self._asked[split]), len(self._asked[split]) + len(ours)))
            self._asked[split] += ours
        self._instances[split].append(instance)

    def _try_out(self) -> None:
        """Judge made-up answers to every document: what cannot be scored is to be found before a search."""
        for split in SPLITS:
            made_up: list[Answered] = [
                Answer(-1.0, 1, False) if isinstance(each, Request) else "" for each in self._asked[split]
            ]
            unknown: list[int] = []
            for instance in self._instances[split]:
                leaf = self._leaves[instance.leaf]
                with self._named(leaf, instance.doc_id):
                    right, choices = lm_eval.answers(leaf, instance.doc)
                    unknown += [instance.doc_id] if choices is not None and not _among(right, choices) else []
                    written = [right] if isinstance(right, str) else []
                    for text in ("", *written):  # what writes nothing, and what writes the answer
                        for start, end in instance.parts:
                            if isinstance(made_up[start], str):
                                made_up[start:end] = [text] * (end - start)
                        (metrics,) = self._judge([instance], made_up)
                        self._score(instance.leaf, metrics[self._filter[instance.leaf]])
            self._warn(split, unknown)

    def _warn(self, split: Split, unknown: Sequence[int]) -> None:
        """Tell of documents that nothing can answer, and of templates that were not filled in."""
        count = len(self._instances[split])
        if count and len(unknown) == count:
            first = self._instances[split][0]
            right, choices = lm_eval.answers(self._leaves[first.leaf], first.doc)
            raise InputError(
                f"task {self.name}: the right answer is in no document among the choices, e.g. {right!r} of "
                f"{choices!r}; see doc_to_target and doc_to_choice"
            )
        if unknown:
            log.warning(
                "task %s: in %d of %d documents, e.g. %d, the right answer is not among the choices; they score 0",
                self.name,
                len(unknown),
                count,
                unknown[0],
            )
        for instance in self._instances[split]:
            texts = [str(text) for request in instance.requests for text in request.args if isinstance(text, str)]
            found = next((re.search(r"\{\{.*?\}\}", text) for text in texts if "{{" in text), None)
            if found is not None:
                log.warning(
                    "task %s: document %d asks with %s as it stands; the harness fills in no list of templates",
                    self.name,
                    instance.doc_id,
                    found[0],
                )
                return

    @contextmanager
    def _named(self, leaf: Any, number: int) -> Iterator[None]:
        """Let an error of a task's YAML or code say which document it was about."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # a task may be anybody's code
            told = f"task {self.name}: {leaf.task_name}, document {number}: {lm_eval.reason(error)}"
            raise InputError(told) from error

    def _judged(self, split: Split, answers: Sequence[Answered]) -> list[dict[str, dict[str, Any]]]:
        """Return per document: filter -> metric -> value."""
        return self._judge(self._instances[split], answers)

    def _judge(
        self, instances: Sequence[_Instance], answers: Sequence[Answered | None]
    ) -> list[dict[str, dict[str, Any]]]:
        by_leaf: dict[int, list[Any]] = defaultdict(list)
        for instance in instances:
            for request, part in _pairs(instance):
                request.resps = [self._response(request, answers, part)] * request.repeats
                request.filtered_resps = {}
                by_leaf[instance.leaf].append(request)
        for index, requests in by_leaf.items():
            lm_eval.filter_(self._leaves[index], requests)
        found = []
        for instance in instances:
            leaf, requests = self._leaves[instance.leaf], sorted(instance.requests, key=lambda request: request.idx)
            found.append(
                {
                    chosen: dict(leaf.process_results(instance.doc, [each.filtered_resps[chosen] for each in requests]))
                    for chosen in requests[0].filtered_resps
                }
            )
        return found

    def _response(self, request: Any, answers: Sequence[Answered | None], part: tuple[int, int]) -> Any:
        """Return the answers to one request in the harness's form."""
        own = answers[slice(*part)]
        if request.request_type == "generate_until":
            return own[0]
        scored = [answer for answer in own if isinstance(answer, Answer)]
        total = sum(answer.logprob for answer in scored)
        return total if request.request_type == "loglikelihood_rolling" else (total, scored[0].greedy)

    def _identity(self) -> str:
        rules = [
            [leaf.task_name, str(leaf.VERSION), metric, chosen, lm_eval.rules(leaf)]
            for leaf, metric, chosen in zip(self._leaves, self._metric, self._filter, strict=True)
        ]
        asked = {split: [repr(request) for request in self._asked[split]] for split in SPLITS}
        documents = {split: [canonical(each.doc) for each in self._instances[split]] for split in SPLITS}
        return hashlib.sha256(json.dumps([rules, asked, documents]).encode()).hexdigest()


def harness_task(opening: Opening) -> HarnessTask:
    """Make a task of the harness."""
    section = TaskSection(name=opening.name, search=opening.search, test=opening.test, **opening.keys)
    return HarnessTask(section, opening.tokenizer, opening.folder, opening.directory)


def _among(right: Any, choices: Sequence[str]) -> bool:
    """Say whether a right answer, by number or text or several of them, is one of the choices."""
    if isinstance(right, (list, tuple)):
        return any(_among(each, choices) for each in right)
    if isinstance(right, (int, np.integer)):  # a truth value is a number to the harness too
        return bool(0 <= right < len(choices))
    return right in choices


def _pairs(instance: _Instance) -> Iterator[tuple[Any, tuple[int, int]]]:
    yield from zip(instance.requests, instance.parts, strict=True)
