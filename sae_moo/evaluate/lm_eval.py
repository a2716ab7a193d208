"""The one door to the EleutherAI evaluation harness: loading its tasks, reading its requests, applying its rules.

The public interface of lm-eval 0.4.13 is used (`TaskManager.load`, `Task.fewshot_context`, `construct_requests`,
`process_results`, `aggregation`, the samplers), and beyond it: `Task._filters` and `Task._instances`, which
`Task.apply_filters` works on, and `HFLM._loglikelihood_tokens`, the method that backends override, to see the tokens
that the harness would score. `tests/evaluate/test_harness.py` compares every number with the harness's own and fails
when one of these changes.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from sae_moo.errors import InputError, nearest
from sae_moo.evaluate.local_data import content_of
from sae_moo.evaluate.task import Asked, Metric, Prompt, Request
from sae_moo.experts.live import without_memory

Documents = Literal["train", "validation", "test"]
SEED = 1234
"""Of few-shot sampling: the harness's own default."""
RULES = (
    "output_type",
    "doc_to_target",
    "doc_to_choice",
    "process_results",
    "metric_list",
    "filter_list",
    "generation_kwargs",
    "repeats",
)
"""What a task's YAML says of judging answers; the rest is seen in its prompts and documents."""
FILTERS_OF_TEXT = {
    "take_first",
    "take_first_k",
    "majority_vote",
    "regex",
    "remove_whitespace",
    "lowercase",
    "uppercase",
    "map",
    "format_span",
}
"""Filters that read what was written and no document."""
GENERATION = ("until", "max_gen_toks", "do_sample", "temperature")
"""Settings of greedy decoding that can be changed."""
BOOTSTRAP = 1000
"""Draws for standard errors that have no formula; the harness's command takes 100,000."""


def loaded(
    called: str, name: str, include: Path | None, fewshot: int | None, generation: Mapping[str, Any]
) -> list[Any]:
    """Load the harness's tasks of a name: one, or those of a group.

    Args:
        called: the task's name in the configuration, for messages.
        name: the harness's name of a task, a group or a tag.
        include: a folder with further task YAMLs, or one such file; they go before the harness's own.
        fewshot: number of examples; None: the tasks' own. As in the harness, a task whose YAML says 0 keeps 0.
        generation: changes to the settings of tasks that let models write.

    Raises:
        InputError: if there is no such task, its documents cannot be had, or it cannot be run here.
    """
    if include is not None and not include.exists():
        raise InputError(f"task {called}: include: no such file or folder: {include}")
    place = None if include is None else str(include if include.is_dir() else include.parent)
    several = [] if place is None else _naming(name, Path(place))
    if len(several) > 1:
        raise InputError(f"task {called}: {name} is named by several YAMLs: {', '.join(map(str, several))}")
    unreadable: list[str] = []
    try:
        state = _state(place)
        manager = _manager(place, state)
        if name not in manager.task_index:
            unreadable = [*_unreadable(include)]
            if unreadable and include is not None and include.is_file():
                raise InputError(f"task {called}: {name}: {unreadable[0]}")  # no task of the harness is meant
            manager = _manager(place, state, defaults=True)
    except InputError:
        raise
    except Exception as error:  # whatever its files make the harness raise
        raise InputError(f"task {called}: the YAMLs of {place} cannot be read: {reason(error)}") from error
    if name not in manager.task_index:
        where = f" or {include}" if include is not None else ""
        # thousands: those come first that have the most letters where the name has them
        known = sorted(map(str, manager.task_index), key=lambda each: -sum(map(str.__eq__, each, name)))
        raise InputError(
            f"task {called}: neither built in nor a task or group of the harness{where}: {name!r}"
            f"{nearest(name, known)}{''.join(f'; {each}' for each in unreadable)}"
        )
    try:
        with cached_by_content():
            leaves = list(manager.load([name])["tasks"].values())
    except Exception as error:  # whatever a dataset's files, the hub, or a task's own code raise
        raise InputError(f"task {called}: {_why_not(name, manager, error)}") from error
    if not leaves:
        raise InputError(f"task {called}: the group {name} has no tasks")
    unknown = [key for key in generation if key not in GENERATION]
    if unknown:
        raise InputError(
            f"task {called}: generation.{unknown[0]}: no such setting{nearest(unknown[0], GENERATION)}; there are "
            f"{', '.join(GENERATION)}"
        )
    if generation and not any(leaf.OUTPUT_TYPE == "generate_until" for leaf in leaves):
        raise InputError(f"task {called}: generation: {name} lets models write nothing")
    for leaf in leaves:
        if getattr(leaf, "UNSAFE_CODE", False):
            raise InputError(f"task {called}: {leaf.task_name} runs code that models write; it is not run here")
        if getattr(leaf, "MULTIMODAL", False):
            raise InputError(f"task {called}: {leaf.task_name} needs images or sound; expected text")
        own = leaf.get_config("num_fewshot")
        if own is None or (fewshot is not None and own != 0):
            leaf.set_config(key="num_fewshot", value=fewshot or 0)
        if generation and leaf.OUTPUT_TYPE == "generate_until":
            leaf.set_config(key="generation_kwargs", value=dict(generation), update=True)
    return leaves


def _why_not(name: str, manager: Any, error: Exception) -> str:
    """Explain why a task's documents cannot be had, and how to get them."""
    import datasets

    told = f"{name} cannot be loaded: {reason(error)}"
    entry = manager.task_index.get(name)
    described = {} if entry is None else (entry.cfg or {})
    members = described.get("task")
    named = [each for each in members if isinstance(each, str)] if isinstance(members, list) else []
    missing = [each for each in named if each not in manager.task_index]
    if missing:
        return f"{name} cannot be loaded: there is no task {', '.join(missing)}, which the group names"
    path, subset = described.get("dataset_path"), described.get("dataset_name")
    of_documents = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("datasets", "pyarrow")
    if path is None or not of_documents:
        return f"{told}; what its YAML {getattr(entry, 'yaml_path', '')} says cannot be run"
    if path in ("json", "csv", "parquet", "text"):
        settings = described.get("dataset_kwargs")
        files = settings.get("data_files") if isinstance(settings, Mapping) else settings
        return f"{told}; its YAML names the files {files}, from the current folder {Path.cwd()}"
    call = f"datasets.load_dataset({path!r}{f', {subset!r}' if subset else ''})"
    return (
        f"{told}; its documents are the dataset {path!r}, not in the cache {datasets.config.HF_DATASETS_CACHE}. "
        f'Where there is a network, python -c "import datasets; {call}" fetches it; that cache can be copied here'
    )


def reason(error: BaseException) -> str:
    """Return an error in one line, with what caused it if that says more."""
    told = (str(error).strip().splitlines() or [""])[0]
    cause = error.__cause__ or error.__context__
    own = f"{type(error).__name__}: {told}" if told and told != type(error).__name__ else type(error).__name__
    return own if cause is None or str(cause).strip() == told else f"{own} ({reason(cause)})"


def _naming(name: str, place: Path) -> list[Path]:
    """Return the YAMLs under a folder that name a task or group so; the harness would take one of them."""
    line = re.compile(rf"^(task|group):\s*['\"]?{re.escape(name)}['\"]?\s*(#.*)?$", re.MULTILINE)
    files = [each for each in sorted(place.rglob("*.yaml")) if each.is_file()]
    return [each for each in files if line.search(each.read_text("utf-8", errors="replace"))]


def _unreadable(include: Path | None) -> Iterator[str]:
    """Yield what is wrong with YAMLs that the harness passes over."""
    import yaml

    files = [] if include is None else [include] if include.is_file() else sorted(include.rglob("*.yaml"))
    for file in files:
        try:
            described = yaml.compose(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, ValueError) as error:
            yield f"{file} is no YAML: {' '.join(str(error).split())}"
            continue
        keys = {each.value for each, _ in described.value} if isinstance(described, yaml.MappingNode) else set()
        if not keys & {"task", "group"} and file == include:
            yield f"{file} names no task or group"


@contextmanager
def cached_by_content() -> Iterator[None]:
    """While entered, what the datasets library makes of local files is kept in a folder for their content.

    Its own key is a file's path and time of modification: of another file of the same name and time it gives the
    documents of the former. The folder lies in its own cache.
    """
    import datasets

    original = datasets.load_dataset

    def load(path: Any, *arguments: Any, **settings: Any) -> Any:
        content = content_of(path, settings)
        if content is not None and settings.get("cache_dir") is None:
            settings["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / content)
        return original(path, *arguments, **settings)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original


def _state(include: str | None) -> str | None:
    """Return a name for what the YAMLs and the code of a folder hold now."""
    if include is None:
        return None
    whole = hashlib.sha256()
    for file in sorted(each for kind in ("*.yaml", "*.yml", "*.py") for each in Path(include).rglob(kind)):
        if file.is_file():
            content = file.read_bytes()
            whole.update(f"{file}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()


@functools.cache
def _manager(include: str | None, state: str | None, defaults: bool = False) -> Any:  # noqa: ARG001  # tells folders apart
    """Return the harness's index of tasks; with its own tasks it takes seconds, so they are asked last.

    Kept while the process lives, by the folder and what its files hold.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=defaults)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness's progress notes off the user's terminal; its errors are raised all the same."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "lm-eval")]
    levels, bars = [each.level for each in loggers], datasets.are_progress_bars_disabled()
    for each in loggers:
        each.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def reader(tokenizer: Any, folder: Path) -> Any:
    """Return the harness's Hugging Face backend with no weights: it only says which tokens it would ask for."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    class Reader(HFLM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pretrained=without_memory(folder), tokenizer=tokenizer, batch_size=1)
            self.seen: list[tuple[list[int], list[int]]] = []
            self.cut: Counter[str] = Counter()

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.seen += [(list(context), list(continuation)) for _, context, continuation in requests]
            return [(0.0, False)] * len(requests)

        def read(self, name: str, request: Any) -> list[Asked]:
            """Return the requests that the harness would make of one of its own."""
            if self.eot_token_id is None and (request.request_type == "generate_until" or self.prefix_token_id is None):
                raise InputError(
                    f"task {name}: the base's tokenizer has no end-of-text token (eos_token), which the harness needs "
                    "to say where a text begins or ends"
                )
            if request.request_type == "generate_until":
                return [self._prompt(name, *request.args)]
            self.seen.clear()
            ask = {"loglikelihood": self.loglikelihood, "loglikelihood_rolling": self.loglikelihood_rolling}
            ask[request.request_type]([request], disable_tqdm=True)
            return [self._fitted(name, context, continuation) for context, continuation in self.seen]

        def _fitted(self, name: str, context: list[int], continuation: list[int]) -> Request:
            if not continuation:
                raise InputError(f"task {name}: a continuation without tokens")
            if len(continuation) > self.max_length:
                raise InputError(
                    f"task {name}: a continuation of {len(continuation)} tokens; the model reads {self.max_length}"
                )
            over = len(context) + len(continuation) - (self.max_length + 1)
            if over > 0:
                self.cut[name] += 1
                context = context[over:]
            return Request(tuple(context), tuple(continuation))

        def _prompt(self, name: str, context: str, settings: Mapping[str, Any]) -> Prompt:
            until, most = settings.get("until"), settings.get("max_gen_toks", self.max_gen_toks)
            stops_are_texts = all(isinstance(each, str) for each in (until if isinstance(until, list) else [until]))
            if until is not None and not stops_are_texts:
                raise InputError(f"task {name}: generation.until: expected texts, got {until!r}")
            if isinstance(most, bool) or not isinstance(most, int) or most < 1:
                raise InputError(f"task {name}: generation.max_gen_toks: expected a number from 1, got {most!r}")
            how = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
            if how.get("do_sample") or how.get("num_beams", 1) != 1:
                raise InputError(
                    f"task {name}: its generation is {dict(settings)}; expected greedy decoding (do_sample: false, one "
                    "beam): what is drawn at random cannot be compared between candidates, and beams are not written"
                )
            stops = handle_stop_sequences(how.get("until"), eos=self.tok_decode(self.eot_token_id, False))
            room = self.max_length - int(how["max_gen_toks"])
            if room <= 0:
                raise InputError(
                    f"task {name}: writes up to {how['max_gen_toks']} tokens, the model reads {self.max_length}; set "
                    "generation: {max_gen_toks: ...}"
                )
            tokens = self.tok_batch_encode([context])[0][0].tolist()
            self.cut[name] += len(tokens) > room
            return Prompt(tuple(tokens[-room:]), int(how["max_gen_toks"]), tuple(stop for stop in stops if stop))

    return Reader()


def aggregated(leaf: Any, metric: str, values: Sequence[Any]) -> Metric:
    """Return a metric over documents and its standard error, both as the harness computes them.

    Raises:
        ValueError: if the values of these documents make no finite number, saying why.
    """
    from lm_eval.api.metrics import mean, stderr_for_metric

    aggregate = leaf.aggregation().get(metric, mean)
    # bootstrapping shows that it does; what is not defined (a correlation of constants) is told here
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = _finite(aggregate, values)
        bootstrap = stderr_for_metric(aggregate, BOOTSTRAP) if len(values) > 1 else None
        try:
            stderr = None if bootstrap is None else _finite(bootstrap, values)
        except ValueError:  # of a sample that was drawn, such as one of a single class
            stderr = None
    return Metric(value, stderr)


def _finite(compute: Callable[[Sequence[Any]], Any], values: Sequence[Any]) -> float:
    try:
        found = float(compute(values))
    except Exception as error:  # aggregations may be anybody's code, and anything may be what they are given
        raise ValueError(reason(error)) from error
    if not math.isfinite(found):
        raise ValueError(f"it is {found}")
    return found


def rules(leaf: Any) -> dict[str, str]:
    """Return the rules by which a task's answers are judged, as text; of functions, the file that defines them."""
    described = leaf.config.to_dict(keep_callable=True)
    found = {key: _text(described.get(key)) for key in RULES}
    own = type(leaf)
    return found if own.__module__.startswith("lm_eval.api.") else {**found, "class": _text(own)}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    if not callable(value):
        return repr(value)
    try:
        return Path(inspect.getfile(value)).read_text(encoding="utf-8")
    except (TypeError, OSError, ValueError):  # built in, or made by hand
        return getattr(value, "__qualname__", type(value).__qualname__)


def filters(leaf: Any) -> list[str]:
    """Return the names of a task's filters, in order."""
    return [each.name for each in leaf._filters]


def filter_(leaf: Any, requests: list[Any]) -> None:
    """Apply a task's filters to the responses of its requests, which then hold the outcomes too."""
    leaf._instances = requests
    leaf.apply_filters()


def documents(name: str, leaf: Any, kind: Documents) -> Any:
    """Return the documents of one kind, an indexable sequence.

    Raises:
        InputError: if the task's data lack the split that it names.
    """
    try:
        return {"train": leaf.training_docs, "validation": leaf.validation_docs, "test": leaf.test_docs}[kind]()
    except KeyError as error:
        there = ", ".join(map(str, getattr(leaf, "dataset", None) or ())) or "none"
        raise InputError(f"task {name}: data of {leaf.task_name} have no split {error}; they have {there}") from error


def answers(leaf: Any, doc: Any) -> tuple[Any, Sequence[str] | None]:
    """Return the right answer to a document, as the task has it, and its choices; None for what it has not."""
    if leaf.OUTPUT_TYPE == "generate_until":
        return leaf.doc_to_target(doc), None
    if leaf.OUTPUT_TYPE != "multiple_choice" or not hasattr(leaf, "doc_to_choice"):
        return None, None
    right = leaf.doc_to_text(doc) if getattr(leaf, "multiple_input", 0) else leaf.doc_to_target(doc)
    return right, list(leaf.doc_to_choice(doc))


def kinds(leaf: Any) -> dict[Documents, bool]:
    """Return which kinds of documents a task has, those that a search prefers first."""
    return {
        "validation": leaf.has_validation_docs(),
        "train": leaf.has_training_docs(),
        "test": leaf.has_test_docs(),
    }


def seen(leaf: Any, doc: Any) -> list[Any]:
    """Return what a model and a metric see of a document: the document itself where its own code judges it."""
    config = leaf.config
    found = [leaf.doc_to_text(doc), leaf.doc_to_target(doc), leaf.doc_to_prefix(doc)]
    found.append(leaf.doc_to_choice(doc) if getattr(config, "doc_to_choice", None) is not None else None)
    found.append(leaf.resolve_field(doc, config.description) if hasattr(leaf, "resolve_field") else None)
    own_code = not type(leaf).__module__.startswith("lm_eval.api.") or config.process_results is not None
    steps = [step.get("function") for each in config.filter_list or () for step in each.get("filter") or ()]
    if own_code or not set(steps) <= FILTERS_OF_TEXT:
        found.append(doc)
    return found


def split_of(leaf: Any, kind: Documents) -> str | None:
    """Return what a task's data call the split of a kind of documents; None if that is not known."""
    named = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
    split: str | None = leaf.get_config(named[kind])
    return split


def example_split(leaf: Any) -> str | None:
    """Return the split that few-shot examples are drawn from; None if they are a fixed list, or it is not known."""
    fewshot = getattr(leaf, "fewshot_cfg", None)
    if fewshot is not None and (fewshot.split is not None or fewshot.samples is not None):
        split: str | None = fewshot.split
        return split
    having = kinds(leaf)
    order: Sequence[Documents] = ("train", "validation", "test")
    return next((split_of(leaf, kind) for kind in order if having[kind]), None)


def reserved(name: str, leaf: Any, kind: Documents) -> bool:
    """Say whether documents of a kind are just the few-shot examples, and no more than these."""
    shots, split = int(leaf.config.num_fewshot or 0), split_of(leaf, kind)
    if not shots or split is None or split != example_split(leaf):
        return False
    return len(documents(name, leaf, kind)) <= _needed(leaf, shots)


def _needed(leaf: Any, shots: int) -> int:
    """Return from how many documents the harness draws so many examples."""
    from lm_eval.api.samplers import ContextSampler

    usual = type(leaf.sampler).sample is ContextSampler.sample
    return shots + (usual and leaf.fewshot_cfg.split == leaf.config.test_split)  # one to spare: the one that is asked


@contextmanager
def examples(leaf: Any, rules: Sequence[Callable[[Any], bool]], error: str) -> Iterator[int | None]:
    """Let a task draw its few-shot examples from the documents that a rule allows; give the number of the rule.

    Args:
        leaf: the task; it draws anew from its first seed.
        rules: which documents may be examples. The first that allows enough of them holds. Empty: all, as in the
            harness.
        error: message for when too few are left, with places for how many are ``needed`` and ``left``.

    Raises:
        InputError: if no rule allows enough.
    """
    leaf.set_fewshot_seed(seed=SEED)
    shots, sampler = int(leaf.config.num_fewshot or 0), getattr(leaf, "sampler", None)
    if not rules or not shots or sampler is None:
        yield None
        return
    pool, needed = list(sampler.fewshot_docs()), _needed(leaf, shots)
    left = ((i, [doc for doc in pool if allowed(doc)]) for i, allowed in enumerate(rules))
    rule, rest = next(((i, rest) for i, rest in left if len(rest) >= needed), (None, []))
    if rule is None:
        most = max(sum(map(allowed, pool)) for allowed in rules)
        raise InputError(error.format(needed=needed, left=most))
    indices, sampler.fewshot_indices = sampler.fewshot_indices, None  # they chose from the pool already
    sampler.replace_df(rest)
    try:
        yield rule
    finally:
        sampler.replace_df(pool)
        sampler.fewshot_docs()  # marks the pool as chosen from
        sampler.fewshot_indices = indices
