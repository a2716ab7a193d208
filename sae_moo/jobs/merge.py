"""Merging without a search: the model of a recipe file or of a mergekit configuration, and recipes for mergekit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_moo.deploy.card import Card
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.mergekit.document import AUTO, Document, read_configuration
from sae_moo.deploy.mergekit.translate import translate
from sae_moo.deploy.mergekit.writer import configuration_text
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import deployed_config, missing_code, write_origin, write_surroundings
from sae_moo.deploy.tensor_files import SHARD_BYTES, write_shards
from sae_moo.errors import InputError, RunError, WeightsError, nearest
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.layout import dtype_of
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.tokenizer_files import tokenizer_to_write
from sae_moo.experts.vocabulary import KEEP_BASE, REFUSE, token_list
from sae_moo.files.whole import check_creatable, check_free, whole_file, whole_folder
from sae_moo.jobs.bench import versions
from sae_moo.materialization import calibration
from sae_moo.recipe import BASE, STORED, Prune, Recipe, decode, walk

MERGEKIT = FORMATS["mergekit"].endings


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
    ordered = (_from_mergekit if path.suffix in MERGEKIT else _from_recipe)(path, moved)
    recipe, pool = ordered.recipe, ordered.pool
    named = getattr(recipe, "dtype", dtype)
    notes = ordered.notes + missing_code(pool)
    stream = Stream(recipe, pool, dtype_of(pool.main_dtype if named == STORED else named))
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
        notes += _compared(path, ordered.digests, stream)
        facts = {
            "sparsity": f"{sparsity:.4f} of the {pool.counted_words} are exact zeros",
            "dtype": stream.dtype_words,
            "digest of the recipe": f"`{recipe.digest(pool)}`",
            "made with": versions(),
        }
        write_origin(partial, stream, Card(output.name, ordered.why, facts, {}))
    return Merged(sparsity, notes)


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


def _from_mergekit(path: Path, moved: Mapping[str, str] | None) -> _Ordered:
    """Return what a mergekit configuration orders."""
    configuration = read_configuration(path)
    sources = _moved(path, configuration.sources, moved)
    base = sources.pop(BASE)
    policy = KEEP_BASE if configuration.tokenizer == BASE else REFUSE  # mergekit then matches rows by token, as we do
    pool = ExpertPool.open(base, sources, vocabulary=policy) if sources else ExpertPool({BASE: Checkpoint(base)})
    tokenizer = _chosen_tokenizer(configuration, pool)
    notes = configuration.notes
    stored = pool.checkpoints[BASE].vocabulary
    if configuration.tokenizer is not None and stored is not None and stored != len(tokenizer):
        notes += (f"the embeddings keep their {stored} rows; mergekit leaves one per token, {len(tokenizer)}",)
    return _Ordered(
        pool=pool,
        recipe=translate(configuration, pool),
        tokenizer=tokenizer,
        settings=configuration.tokenizer or BASE,
        why=f"Merged by the mergekit configuration {path.name}",
        notes=notes,
    )


def _from_recipe(path: Path, moved: Mapping[str, str] | None) -> _Ordered:
    """Return what a recipe file orders."""
    pool = _open_experts(path, moved)
    return _Ordered(
        pool=pool,
        recipe=read_recipe(path, pool),
        tokenizer=tokenizer_to_write(pool.checkpoints[BASE].folder),
        settings=BASE,
        why=f"Merged by the recipe {path.name}",
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
    sources = _moved(path, {name: entry["source"] for name, entry in experts.items()}, moved)
    policy = str(document.get("vocabulary", "refuse"))
    prunings = [node for node in walk(_decoded(path, document)) if isinstance(node, Prune)]
    pruned = sorted({name for node in prunings for name in node.submodels})
    return ExpertPool.open(
        sources.pop(BASE), sources, relative_to=path.resolve().parent, vocabulary=policy, pruned=pruned
    )


def _moved(path: Path, sources: Mapping[str, str], moved: Mapping[str, str] | None) -> dict[str, str]:
    """Return where experts are now."""
    unknown = [name for name in moved or {} if name not in sources]
    if unknown:
        known = ", ".join(sources)
        raise InputError(f"{path}: holds no expert {unknown[0]!r}{nearest(unknown[0], sources)}; it has {known}")
    now = {name: str(Path(s).resolve()) if Path(s).is_dir() else s for name, s in (moved or {}).items()}
    return {**sources, **now}


def _chosen_tokenizer(configuration: Document, pool: ExpertPool) -> Any:
    """Return the tokenizer a mergekit configuration asks for.

    Raises:
        InputError: if it is an expert's and a model has not its tokens in the same rows: mergekit would move rows.
    """
    tokenizer = tokenizer_to_write(pool.checkpoints[configuration.tokenizer or BASE].folder)
    tokens = tokenizer.get_vocab() if configuration.tokenizer not in (None, BASE) else {}
    for name, weights in pool.checkpoints.items() if tokens else ():
        own = token_list(weights.folder)
        if own is not None and any(own.get(token) != row for token, row in tokens.items()):
            raise InputError(
                f"{configuration.path}: tokenizer: {name!r} has another vocabulary than {configuration.tokenizer!r}; "
                "rows of embeddings are matched to the base's tokenizer only (tokenizer: {source: base})"
            )
    template = configuration.chat_template
    if template == AUTO:
        having = [tokenizer_to_write(w.folder).chat_template for w in pool.checkpoints.values() if token_list(w.folder)]
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
