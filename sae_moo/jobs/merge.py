"""Merging without a search: the model of a recipe file or of a mergekit configuration, and recipes for mergekit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_moo.deploy.card import Card
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.mergekit.document import AUTO, Document
from sae_moo.deploy.mergekit.reading import read_configurations
from sae_moo.deploy.mergekit.translate import translate
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.deploy.mixtures import check_whole
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import (
    deployed_config,
    missing_code,
    tokenizer_of_merge,
    write_origin,
    write_surroundings,
)
from sae_moo.deploy.tensor_files import SHARD_BYTES, write_shards
from sae_moo.errors import InputError, RunError, WeightsError, itemized, nearest
from sae_moo.experts.checkpoint import locate
from sae_moo.experts.layers import Order
from sae_moo.experts.layout import dtype_of
from sae_moo.experts.opening import open_models
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.tokenizer_files import tokenizer_to_write
from sae_moo.experts.vocabulary import KEEP_BASE, REFUSE, policy_of
from sae_moo.files.whole import check_creatable, check_free, whole_file, whole_folder
from sae_moo.jobs.bench import versions
from sae_moo.materialization import calibration
from sae_moo.recipe import BASE, STORED, Prune, Recipe, decode, walk

MERGEKIT = FORMATS["mergekit"].endings


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge` wrote.

    Args:
        sparsity: the fraction of zeros over all prunable weights; of several models that of the last.
        notes: what the user should know about the merge.
        proof: what was found to be as it should, if anything was compared.
    """

    sparsity: float
    notes: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()


def merge(
    recipe_file: str | Path, output: str | Path, moved: Mapping[str, str] | None = None, dtype: str = "float32"
) -> Merged:
    """Write the model of a recipe file or a mergekit configuration, without any search.

    A configuration may hold several merges (a YAML document each, as mergekit-multi has it) that take each other for
    models. The one without a name, or the only one that no other takes, is written as `output`, the others beside it
    as ``OUTPUT-NAME``; where there are several of the latter kind, all are written into `output`.

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
    if path.suffix not in MERGEKIT:
        return _write(_from_recipe(path, moved), path, output, dtype)
    merges = read_configurations(path)
    _check_moved(path, {name for document in merges for name in document.models}, moved)
    if len(merges) == 1:
        return _write(_from_mergekit(path, merges[0], {}, moved), path, output, dtype)
    return _write_all(path, merges, output, moved)


def _write(ordered: _Ordered, path: Path, output: Path, dtype: str = "float32") -> Merged:
    """Write one model."""
    recipe, pool = ordered.recipe, ordered.pool
    named = getattr(recipe, "dtype", dtype)
    notes = ordered.notes + missing_code(pool)
    stream = Stream(recipe, pool, dtype_of(pool.main_dtype if named == STORED else named))
    check_whole(stream, f"{output}: a folder of dense weights")
    with whole_folder(output) as partial:
        # first, so that nothing but the weights can fail once they are computed
        write_surroundings(partial, pool, deployed_config(pool, stream.dtype), ordered.tokenizer, ordered.settings)
        write_shards(partial, stream.entries, stream.content, SHARD_BYTES)
        try:
            sparsity = stream.sparsity()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        if sparsity and pool.left_alone:
            notes += (f"sparsity is the text model's: {', '.join(pool.left_alone)} are not counted",)
        proof = _compared(path, ordered.digests, stream)
        facts = {
            "sparsity": f"{sparsity:.4f} of the {pool.counted_words} are exact zeros",
            "dtype": stream.dtype_words,
            "digest of the recipe": f"`{recipe.digest(pool)}`",
            "made with": versions(),
        }
        write_origin(partial, stream, Card(output.name, ordered.why, facts, {}))
    return Merged(sparsity, notes, proof)


def _write_all(path: Path, merges: Sequence[Document], output: Path, moved: Mapping[str, str] | None) -> Merged:
    """Write the merges of one file, all or none; each finds those before it where they were written."""
    taken = {name for document in merges for name in document.takes}
    last = [each for each in merges if each.name is None] or [each for each in merges if each.name not in taken]
    places: dict[str | None, Path] = {}
    for each in merges:
        if last == [each]:
            places[each.name] = output
        else:
            places[each.name] = output / str(each.name) if len(last) > 1 else Path(f"{output}-{each.name}")
            check_free(places[each.name])
    _check_there(path, merges, moved)
    made: list[Path] = []
    notes: list[str] = []
    sparsity = 0.0
    if len(last) > 1:
        check_creatable(output)
        output.mkdir()
        made.append(output)
    try:
        for each in merges:
            here = {str(name): str(place) for name, place in places.items() if place in made}
            done = _write(_from_mergekit(path, each, here, moved), path, places[each.name])
            made.append(places[each.name])
            sparsity = done.sparsity
            notes += [f"{each.name or 'the merge without a name'}: {note}" for note in done.notes]
            notes.append(f"{each.name or 'the merge without a name'}: written to {places[each.name]}")
    except BaseException:
        for place in made:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return Merged(sparsity, tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ordered:
    """What a file says is to be merged.

    Args:
        pool: the experts.
        recipe: what is made of them.
        tokenizer: what is written as the tokenizer.
        settings: name of the expert that settings of generation come from.
        why: what it is, for the model card.
        notes: what the user should know.
        digests: tensor name -> SHA-256 that it must have, as it was read; None if the file does not say.
    """

    pool: ExpertPool
    recipe: Recipe
    tokenizer: Any
    settings: str
    why: str
    notes: tuple[str, ...] = ()
    digests: Any = None


def _from_mergekit(
    path: Path, document: Document, made: Mapping[str, str], moved: Mapping[str, str] | None
) -> _Ordered:
    """Return what a merge of a mergekit configuration orders.

    Args:
        path: the file.
        document: the merge.
        made: name of another merge of the file -> where its model is.
        moved: as for `merge`.
    """
    sources = {name: _found(source, made) for name, source in document.sources.items()} | _now(moved, document.models)
    models = open_models(sources.pop(BASE), sources)
    pool = ExpertPool(models, document.vocabulary, document.layers)
    tokenizer, notes = tokenizer_of_merge(pool)
    tokenizer = _with_template(document, pool, tokenizer)
    stored, tokens = pool.checkpoints[BASE].vocabulary, pool.tokens() if document.vocabulary == KEEP_BASE else None
    if tokens is not None and stored is not None and stored != len(tokens):
        notes = (*notes, f"the embeddings keep their {stored} rows; mergekit leaves one per token, {len(tokens)}")
    return _Ordered(
        pool=pool,
        recipe=translate(document, pool),
        tokenizer=tokenizer,
        settings=document.tokenizer or BASE,
        why=f"Merged by the mergekit configuration {path.name}",
        notes=(*document.notes, *notes),
    )


def _check_there(path: Path, merges: Sequence[Document], moved: Mapping[str, str] | None) -> None:
    """Raise InputError listing the models that none of the merges makes and that are not there."""
    names = {document.name for document in merges}
    faults = []
    for document in merges:
        for source in (document.sources | _now(moved, document.models)).values():
            for place in [source] if Path(source).is_dir() else source.split("+"):
                try:
                    if place not in names:
                        locate(place)
                except InputError as error:
                    faults.append(f"{document.name or 'the merge without a name'}: {error}")
    if faults:
        raise InputError(itemized(f"{path}: cannot open", faults))


def _found(source: str, made: Mapping[str, str]) -> str:
    """Return where a model is that may be another merge of the file, perhaps with an adapter."""
    model, plus, adapter = source.partition("+")
    return f"{made[model]}{plus}{adapter}" if model in made else source


def _from_recipe(path: Path, moved: Mapping[str, str] | None) -> _Ordered:
    """Return what a recipe file orders."""
    pool = _open_experts(path, moved)
    tokenizer, notes = tokenizer_of_merge(pool)
    return _Ordered(
        pool=pool,
        recipe=read_recipe(path, pool),
        tokenizer=tokenizer,
        settings=BASE,
        why=f"Merged by the recipe {path.name}",
        notes=notes,
        digests=_read_document(path).get("tensors"),
    )


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


def write_mergekit(
    recipe_file: str | Path, output: str | Path, moved: Mapping[str, str] | None = None
) -> tuple[str, ...]:
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
    check_creatable(output)
    pool = _open_experts(path, moved)
    try:
        text, notes = configuration_text(read_recipe(path, pool), pool)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    with whole_file(output, replace=True) as partial:
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
    _check_moved(path, experts, moved)
    folder = path.resolve().parent
    sources = {name: str(entry["source"]) for name, entry in experts.items()} | _now(moved, experts)
    prunings = [node for node in walk(_decoded(path, document)) if isinstance(node, Prune)]
    pruned = sorted({name for node in prunings for name in node.submodels})
    models = open_models(sources.pop(BASE), sources, folder)
    layers = {name: _order(path, entry["layers"]) for name, entry in experts.items() if "layers" in entry}
    return ExpertPool(models, policy_of(document.get("vocabulary", REFUSE)), layers, pruned)


def _order(path: Path, value: Any) -> Order:
    if not isinstance(value, list) or not all(layer is None or type(layer) is int for layer in value):
        raise InputError(f"{path}: layers: expected a list of layers' numbers, got {value!r}")
    return value


def _check_moved(path: Path, names: Iterable[str], moved: Mapping[str, str] | None) -> None:
    """Raise InputError if a place is given for an expert that there is not."""
    known = list(names)
    unknown = [name for name in moved or {} if name not in known]
    if unknown:
        near = nearest(unknown[0], known)
        raise InputError(f"{path}: holds no expert {unknown[0]!r}{near}; it has {', '.join(known)}")


def _now(moved: Mapping[str, str] | None, names: Iterable[str]) -> dict[str, str]:
    """Return where those experts are now that are not where a file says."""
    given = {name: source for name, source in (moved or {}).items() if name in names}
    return {name: str(Path(source).resolve()) if Path(source).is_dir() else source for name, source in given.items()}


def _with_template(document: Document, pool: ExpertPool, tokenizer: Any) -> Any:
    """Give a tokenizer, if there is one, the chat template that a mergekit configuration asks for; return it."""
    template = document.chat_template
    if template == AUTO:
        having = [_template_of(weights.folder) for weights in pool.checkpoints.values()]
        having = [each.strip() for each in having if isinstance(each, str)]
        template = Counter(having).most_common(1)[0][0] if having else None
    if template is not None and tokenizer is not None:
        tokenizer.chat_template = template
    return tokenizer


def _template_of(folder: Path) -> Any:
    try:
        template = tokenizer_to_write(folder).chat_template
    except InputError:  # a model without a tokenizer has no say
        return None
    return template.get("default") if isinstance(template, dict) else template


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: expected a recipe as JSON: {reason}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a recipe as a JSON object, got {type(document).__name__}")
    return document


def _decoded(path: Path, document: dict[str, Any]) -> Recipe:
    try:
        return decode(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_recipe(path: Path, pool: ExpertPool) -> Recipe:
    """Read a recipe file over a pool's experts, and the activation norms that it names.

    Raises:
        InputError: if it is none, or an expert is not what it was.
    """
    document = _read_document(path)
    recipe = _decoded(path, document)
    experts = document.get("experts")
    for name, entry in experts.items() if isinstance(experts, Mapping) else ():
        fingerprint = entry.get("fingerprint") if isinstance(entry, Mapping) else None
        if fingerprint is not None and name in pool.fingerprints and pool.fingerprints[name] != fingerprint:
            raise InputError(f"{path}: expert {name!r} has other weights than when the recipe was written")
    calibration.load_calibration(recipe, pool, path.parent)
    return recipe
