"""The whole jobs: search, evaluate, export, merge. Each is one call of the command line."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from sae_moo import calibration, verification
from sae_moo.build import Bench, open_tasks, resolve_device, versions
from sae_moo.build import scorer as scorer_of
from sae_moo.checkpoint import Checkpoint
from sae_moo.config import Config, differences
from sae_moo.deploy.card import Card
from sae_moo.deploy.streaming import Stream
from sae_moo.deploy.tensor_files import SHARD_BYTES, write_shards
from sae_moo.errors import InputError, RunError, WeightsError, nearest
from sae_moo.evaluate.summary import Score, summary
from sae_moo.evaluate.task import SPLITS, Metric, Split
from sae_moo.execute.local import LocalExecutor
from sae_moo.experts import ExpertPool
from sae_moo.export import CARD_FILE, deployed_config, tokenizer_of, write_origin, write_surroundings
from sae_moo.files import check_free, whole, whole_folder
from sae_moo.materializer import materialize, measured_sparsity
from sae_moo.mergekit import document as mergekit_document
from sae_moo.mergekit import writer as mergekit_writer
from sae_moo.mergekit.document import Document
from sae_moo.mergekit.translate import translate
from sae_moo.recipe import BASE, Recipe, decode
from sae_moo.run import POINTER, RUNS, Run
from sae_moo.searchers.searcher import Searcher
from sae_moo.storage import JOURNAL, TrialRecord, TrialStorage, create_or_load, open_storage
from sae_moo.study import Listener, Study
from sae_moo.vocabulary import KEEP_BASE, REFUSE, load_tokenizer, token_list

MERGEKIT = (".yaml", ".yml")  # endings of mergekit configurations
LOCK = "search.lock"  # in a run folder: held by the one process that searches there


def search(
    config: Config,
    listener: Listener = lambda event: None,
    root: str | Path = RUNS,
    fresh: bool = False,
    searcher: Callable[[Bench], Searcher] | None = None,
    bench: Bench | None = None,
) -> Run:
    """Run a search, or go on with one.

    Args:
        config: the configuration.
        listener: told of every finished trial.
        root: folder of run folders; the run lies in ``root/NAME``.
        fresh: put an earlier run of that name aside (as NAME.1, NAME.2, ...) instead of resuming it.
        searcher: makes the searcher instead of the configured one, e.g. with operators of one's own; the study cannot
            tell the two apart, so give it a name of its own.
        bench: what evaluating needs, if it is open already (`Bench.configured`).

    Returns:
        The run, to look at.

    Raises:
        InputError: if anything does not fit, or the stored study was made under other settings, naming the differences.
        Interrupted: on Ctrl-C, after saving.
    """
    bench = Bench.open(config) if bench is None else bench
    folder = Path(root) / config.study.name
    place = _absolute(config.study.storage, config.directory)
    if fresh and place is not None:
        raise InputError("--fresh puts a journal file aside; with study.storage, give the study a new name instead")
    with _locked(folder, fresh) as folder:
        storage = open_storage(place or folder / JOURNAL, write=True)
        study = create_or_load(storage, config.study.name, config.objective_list())
        stored = study.user_attrs.get("identity")
        chosen = bench.anchors() if stored is None else study.user_attrs.get("anchors", {})
        bench = bench.anchored(chosen)
        if stored is None:
            if study.get_trials(deepcopy=False):
                raise InputError(
                    f"study {config.study.name!r} holds trials that sae-moo did not make; use another name"
                )
            study.set_user_attr("fingerprints", bench.pool.fingerprints)
            study.set_user_attr("groups", list(bench.pool.groups))
            study.set_user_attr("anchors", chosen)
            study.set_user_attr("identity", bench.identity())
        else:
            _check_same(folder, stored, bench, place)
        sources = {task.name: {split: task.source(split) for split in SPLITS} for task in bench.tasks}
        places = {"config": config.model_dump(mode="json"), "directory": str(config.directory), "items": sources}
        for key, value in places.items():  # models may have moved since, their contents are checked
            if study.user_attrs.get(key) != value:
                study.set_user_attr(key, value)
        (folder / POINTER).write_text(json.dumps({"study": config.study.name, "storage": place}) + "\n")
        evaluator = bench.evaluator()
        Study(
            TrialStorage(
                storage, config.study.name, config.objective_list(), config.constraint_list(), bench.pool.fingerprints
            ),
            searcher(bench) if searcher is not None else bench.searcher(),
            LocalExecutor(evaluator.evaluate),
            bench.pool.fingerprints,
            bench.pool.groups,
            config.search.evaluations,
            versions(),
            listener,
            bench.rivals(),
        ).run()
    return Run.open(folder)


def _absolute(storage: str | None, directory: Path) -> str | None:
    """Return a storage URL whose SQLite file, like every path, starts from the configuration's folder."""
    file = (storage or "").removeprefix("sqlite:///")
    if storage is None or file == storage or Path(file).is_absolute():
        return storage
    return f"sqlite:///{directory / file}"


def check_resumable(config: Config, bench: Bench, root: str | Path = RUNS) -> None:
    """Raise InputError if a run of that name exists under other settings; writes nothing."""
    folder = Path(root) / config.study.name
    if (folder / POINTER).is_file():
        run = Run.open(folder)
        _check_same(folder, run.identity, bench.anchored(run.anchors), config.study.storage)


def _check_same(folder: Path, stored: Mapping[str, Any], bench: Bench, place: str | None) -> None:
    found = differences(stored, bench.identity())
    if found:
        raise InputError(
            f"{folder}: the study was made under other settings and is not resumed:\n"
            + "\n".join(f"  - {difference}" for difference in found)
            + "\n  use another study.name"
            + (", or --fresh to put the old run aside" if place is None else "")
        )


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What `evaluate` found.

    Args:
        scores: task name -> score.
        sparsity: the fraction of zeros over all prunable weights.
        metrics: task name -> further numbers by name; empty for tasks that have none.
        samples: one per instance, with ``name`` (the task's), ``instance`` (its number), ``score``, and what the task
            tells of it.
    """

    scores: Mapping[str, Score]
    sparsity: float
    metrics: Mapping[str, Mapping[str, Metric]]
    samples: tuple[Mapping[str, Any], ...]


def evaluate(target: str, config: Config, split: Split) -> Evaluated:
    """Score a model folder, a hub id, ``zoo:NAME`` or a recipe with the configured tasks.

    Args:
        target: what to score; a path ending in ``.json`` is a recipe over the configured experts.
        config: the configuration.
        split: which items to score on.

    Raises:
        InputError: if the target or the configuration cannot be used.
        TaskError: if the model's answers are not finite.
    """
    empty = [section.name for section in config.tasks if split == "test" and not section.test]
    if empty:
        raise InputError(f"tasks without test instances (test: 0): {', '.join(empty)}")
    device = resolve_device(config.models.device)
    if target.endswith(".json"):
        bench = Bench.open(config)
        recipe = _read_recipe(Path(target), bench.pool)
        pool, tasks, model = bench.pool, bench.tasks, bench.live_model()
        materialize(recipe, pool, model)
    else:
        pool = ExpertPool({BASE: Checkpoint(target)})
        tasks = open_tasks(config, pool)
        model = pool.live_model(config.models.dtype, device)
    scorer = scorer_of(config, pool, tasks, device)
    answers = scorer.answers(model, split)
    scores = scorer.judge(split, answers)
    metrics = {task.name: task.metrics(split, answers[task.name]) for task in tasks}
    samples = tuple(
        {"name": task.name, "instance": i, "score": float(scores[task.name][i]), **sample}
        for task in tasks
        for i, sample in enumerate(task.samples(split, answers[task.name]))
    )
    return Evaluated(summary(scores), measured_sparsity(pool, model), metrics, samples)


def export(
    run: Run,
    record: TrialRecord,
    why: str,
    output: str | Path,
    verify: bool = False,
    tokenizer_from: str = BASE,
    shard_bytes: int = SHARD_BYTES,
) -> dict[Split, dict[str, Score]]:
    """Write a trial as a Hugging Face folder, in the memory of a few tensors.

    Args:
        run: the run.
        record: one of its complete trials.
        why: why this one, for the model card.
        output: the folder to make.
        verify: in a fresh process, compare every tensor's digest, load the folder again and compare every score with
            the trial's; also scores the test split.
        tokenizer_from: name of the expert whose tokenizer, chat template and settings of generation are written.
        shard_bytes: size that the tensors of one file may have together.

    Returns:
        Scores per split, as found by verifying; empty without.

    Raises:
        InputError: if the output is taken or the experts are not those of the study.
        RunError: if verifying finds any difference; nothing is left behind then.
    """
    output = Path(output)
    check_free(output)
    bench = Bench.open(run.config).anchored(run.anchors)
    changed = [each for each in differences(run.identity, bench.identity()) if verify or each.key != "device"]
    if changed:
        raise InputError("this is not what the study was made with:\n" + "\n".join(f"  - {each}" for each in changed))
    pool, dtype = bench.pool, getattr(torch, run.config.models.dtype)
    tokenizer = tokenizer_of(pool, tokenizer_from)
    stream = Stream(record.recipe, pool, dtype, bench.device)
    card = _card(run, record, why, output.name, bench, tokenizer_from)
    found: dict[Split, dict[str, Score]] = {}
    with whole_folder(output) as partial:
        write_shards(partial, stream.entries, stream.content, shard_bytes)
        _check_sparsity(stream, record)
        write_surroundings(partial, pool, deployed_config(pool, dtype), tokenizer, tokenizer_from)
        write_origin(partial, stream, card)
        if verify:
            found = verification.verify(run, record.number, partial, stream.digests)
            (partial / CARD_FILE).write_text(card.scored(found).text(pool), encoding="utf-8")
    return found


def _check_sparsity(stream: Stream, record: TrialRecord) -> None:
    assert record.evaluation is not None
    sparsity = stream.sparsity()
    if sparsity != record.evaluation.sparsity:
        raise RunError(
            f"trial {record.number} gives sparsity {sparsity} here and had {record.evaluation.sparsity}: the "
            "arithmetic of this machine or version differs; nothing was exported"
        )


def _card(run: Run, record: TrialRecord, why: str, title: str, bench: Bench, tokenizer_from: str) -> Card:
    """Return the card of a trial, with the scores of the search split."""
    evaluation = record.evaluation
    assert evaluation is not None
    facts = {
        "study": run.name,
        "trial": str(record.number),
        "sparsity": f"{evaluation.sparsity:.4f} of the 2-D weights in blocks are exact zeros",
        "dtype": run.config.models.dtype,
        "digest of the recipe": f"`{record.digest}`",
        "tokenizer, chat template, settings of generation": tokenizer_from,
        "made with": versions(),
        **{f"items of {task.name}": task.source("search") + " for the search" for task in bench.tasks},
    }
    known = {
        task: Score(evaluation.mean(task), evaluation.stderr(task), len(row)) for task, row in evaluation.scores.items()
    }
    return Card(title, why, facts, {"search": known})


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge` wrote.

    Args:
        sparsity: the fraction of zeros over all prunable weights.
        notes: what the user should know about the merge.
    """

    sparsity: float
    notes: tuple[str, ...] = ()


def merge(
    recipe_file: str | Path, output: str | Path, moved: Mapping[str, str] | None = None, dtype: str = "float32"
) -> Merged:
    """Write the model of a recipe file or a mergekit configuration, without any search.

    Args:
        recipe_file: a recipe with its ``experts``, as `export` writes it; or, ending in ``.yaml`` or ``.yml``, a
            mergekit configuration, whose relative paths start from the current folder, as mergekit has it.
        output: the folder to make.
        moved: name -> source of experts that are not where the file says; paths start from the current folder.
        dtype: dtype of the model if the recipe does not end in a cast.

    Returns:
        Its sparsity, and notes.

    Raises:
        InputError: if the file is no such recipe or configuration, or an expert is not what it was.
        RunError: if a tensor is not the one whose digest the recipe's file holds; nothing is written then.
    """
    path, output = Path(recipe_file), Path(output)
    check_free(output)
    notes: tuple[str, ...] = ()
    expected = None
    if path.suffix in MERGEKIT:
        document = mergekit_document.read(path)
        notes = document.notes
        sources = _moved(path, document.sources, moved)
        experts = {name: source for name, source in sources.items() if name != BASE}
        base = sources[BASE]
        policy = KEEP_BASE if document.tokenizer == BASE else REFUSE  # mergekit then matches rows by token, as we do
        pool = ExpertPool.open(base, experts, vocabulary=policy) if experts else ExpertPool({BASE: Checkpoint(base)})
        recipe = translate(document, pool)
        tokenizer, settings = _chosen_tokenizer(document, pool), document.tokenizer or BASE
        stored = pool.checkpoints[BASE].vocabulary
        if document.tokenizer is not None and stored is not None and stored != len(tokenizer):
            notes += (f"the embeddings keep their {stored} rows; mergekit leaves one per token, {len(tokenizer)}",)
        why = f"Merged by the mergekit configuration {path.name}"
    else:
        pool = _open_experts(path, moved)
        recipe = _read_recipe(path, pool)
        tokenizer, settings = pool.tokenizer(), BASE
        expected = _read_document(path).get("tensors")
        why = f"Merged by the recipe {path.name}"
    named = getattr(recipe, "dtype", dtype)
    stream = Stream(recipe, pool, getattr(torch, named))
    with whole_folder(output) as partial:
        write_shards(partial, stream.entries, stream.content, SHARD_BYTES)
        try:
            sparsity = stream.sparsity()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        notes += _compared(path, expected, stream)
        facts = {
            "sparsity": f"{sparsity:.4f} of the 2-D weights in blocks are exact zeros",
            "dtype": named,
            "digest of the recipe": f"`{recipe.digest(pool)}`",
            "made with": versions(),
        }
        write_surroundings(partial, pool, deployed_config(pool, getattr(torch, named)), tokenizer, settings)
        write_origin(partial, stream, Card(output.name, why, facts, {}))
    return Merged(sparsity, notes)


def _compared(path: Path, expected: Any, stream: Stream) -> tuple[str, ...]:
    """Compare tensors with the digests that a recipe's file holds; return what to tell of it.

    Raises:
        RunError: naming a tensor that differs.
    """
    if not isinstance(expected, dict):
        return ()
    wrong = sorted(name for name in {*expected, *stream.digests} if expected.get(name) != stream.digests.get(name))
    if wrong:
        raise RunError(
            f"{path}: {len(wrong)} of {len(stream.digests)} tensors are not those that the recipe was written with, "
            f"{wrong[0]} among them: the arithmetic of this machine or version differs; nothing was written"
        )
    return (f"all {len(expected)} tensors are bit for bit those that the recipe was written with",)


def to_mergekit(recipe_file: str | Path, output: str | Path, moved: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Write a recipe file as a mergekit configuration.

    Args:
        recipe_file: a recipe with its ``experts``, as `export` writes it.
        output: the file to make.
        moved: as for `merge`.

    Returns:
        Notes.

    Raises:
        InputError: if mergekit has no words for the recipe, naming what, or the recipe cannot be read; nothing is
            written then.
    """
    path, output = Path(recipe_file), Path(output)
    if path.suffix in MERGEKIT:
        raise InputError(f"{path}: is a mergekit configuration already; expected a recipe as JSON")
    if output.exists() or output.is_symlink():
        raise InputError(f"{output}: exists already; give a new name, or remove it")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}")
    pool = _open_experts(path, moved)
    try:
        text, notes = mergekit_writer.write(_read_recipe(path, pool), pool)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with whole(output) as partial:
        partial.write_text(text, encoding="utf-8")
    return tuple(notes)


def _open_experts(path: Path, moved: Mapping[str, str] | None) -> ExpertPool:
    """Open the experts that a recipe file names."""
    document = _read_document(path)
    experts = document.get("experts")
    if (
        not isinstance(experts, dict)
        or BASE not in experts
        or not all(isinstance(entry, dict) and isinstance(entry.get("source"), str) for entry in experts.values())
    ):
        raise InputError(f'{path}: expected "experts": {{NAME: {{"source": FOLDER}}}}, {BASE!r} among them')
    sources = _moved(path, {name: entry["source"] for name, entry in experts.items()}, moved)
    policy = str(document.get("vocabulary", "refuse"))
    return ExpertPool.open(sources.pop(BASE), sources, relative_to=path.resolve().parent, vocabulary=policy)


def _moved(path: Path, sources: Mapping[str, str], moved: Mapping[str, str] | None) -> dict[str, str]:
    """Return where experts are now."""
    unknown = [name for name in moved or {} if name not in sources]
    if unknown:
        known = ", ".join(sources)
        raise InputError(f"{path}: holds no expert {unknown[0]!r}{nearest(unknown[0], sources)}; it has {known}")
    now = {name: str(Path(s).resolve()) if Path(s).is_dir() else s for name, s in (moved or {}).items()}
    return {**sources, **now}


def _chosen_tokenizer(document: Document, pool: ExpertPool) -> Any:
    """Return the tokenizer a mergekit configuration asks for.

    Raises:
        InputError: if it is an expert's and a model has not its tokens in the same rows: mergekit would move rows.
    """
    tokenizer = load_tokenizer(pool.checkpoints[document.tokenizer or BASE].folder)
    tokens = tokenizer.get_vocab()
    for name, weights in pool.checkpoints.items() if document.tokenizer not in (None, BASE) else ():
        own = token_list(weights.folder)
        if own is not None and any(own.get(token) != row for token, row in tokens.items()):
            raise InputError(
                f"{document.path}: tokenizer: {name!r} has another vocabulary than {document.tokenizer!r}; rows of "
                "embeddings are matched to the base's tokenizer only (tokenizer: {source: base})"
            )
    template = document.chat_template
    if template == mergekit_document.AUTO:
        having = [load_tokenizer(w.folder).chat_template for w in pool.checkpoints.values() if token_list(w.folder)]
        having = [each for each in having if isinstance(each, str)]
        template = Counter(having).most_common(1)[0][0] if having else None
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: expected a recipe as JSON: {reason}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a recipe as a JSON object, got {type(document).__name__}")
    return document


def _read_recipe(path: Path, pool: ExpertPool) -> Recipe:
    document = _read_document(path)
    try:
        recipe = decode(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    experts = document.get("experts")
    for name, entry in experts.items() if isinstance(experts, Mapping) else ():
        fingerprint = entry.get("fingerprint") if isinstance(entry, Mapping) else None
        if fingerprint is not None and name in pool.fingerprints and pool.fingerprints[name] != fingerprint:
            raise InputError(f"{path}: expert {name!r} has other weights than when the recipe was written")
    calibration.load_calibration(recipe, pool, path.parent)
    return recipe


@contextmanager
def _locked(folder: Path, fresh: bool) -> Iterator[Path]:
    """Hold a run folder for one writer.

    Raises:
        InputError: if it cannot be written, or another process is searching there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"{folder}: the run folder cannot be written: {error.strerror}") from error
    with handle:
        _lock(handle, folder)
        if fresh and not _only_lock(folder):
            number = 1
            while folder.with_name(f"{folder.name}.{number}").exists():
                number += 1
            folder.rename(folder.with_name(f"{folder.name}.{number}"))
            with _locked(folder, fresh=False) as anew:
                yield anew
            return
        try:
            yield folder
        finally:
            if _only_lock(folder):  # refused before anything was stored
                shutil.rmtree(folder)


def _only_lock(folder: Path) -> bool:
    return all(path.name == LOCK for path in folder.iterdir())


def _lock(handle: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        owner = handle.read().strip()
        raise InputError(
            f"{folder}: another search is running there" + (f" (process {owner})" if owner else "")
        ) from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
