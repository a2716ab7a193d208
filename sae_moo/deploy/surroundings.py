"""From a recipe to a Hugging Face folder that any loader of the base accepts: what lies beside the weights.

Tensors have the names that the base's file gives them, ``config.json`` is the base's with another dtype, so that what
loads the base (transformers, vLLM, llama.cpp's converter) loads the result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_moo.deploy.card import Card
from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError, nearest
from sae_moo.experts.code import MODEL_SETTINGS, PROCESSOR_SETTINGS, code_files, copy_code
from sae_moo.experts.live import known_config
from sae_moo.experts.pool import ExpertPool
from sae_moo.experts.tokenizer_files import TokenizerFiles, tokenizer_to_write
from sae_moo.experts.tokens import has_tokenizer, same_files, token_list
from sae_moo.materialization.calibration import save_calibration
from sae_moo.recipe import BASE, Cast, Recipe, encode

RECIPE_FILE = "recipe.json"
CARD_FILE = "README.md"


def recipe_document(recipe: Recipe, pool: ExpertPool, tensors: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what ``recipe.json`` holds: the recipe, where its experts were and what was in them.

    Args:
        recipe: the recipe.
        pool: its experts.
        tensors: name -> SHA-256 of the bytes that were written, for whoever makes the model again.
    """
    experts = {
        name: {"source": checkpoint.origin, "fingerprint": pool.fingerprints[name]}
        | ({"layers": pool.layers[name]} if name in pool.layers else {})
        for name, checkpoint in pool.checkpoints.items()
    }
    vocabulary = pool.vocabulary if isinstance(pool.vocabulary, str) else pool.vocabulary.document()
    document = encode(recipe) | {"digest": recipe.digest(pool), "experts": experts, "vocabulary": vocabulary}
    return document if tensors is None else document | {"tensors": dict(tensors)}


def tokenizer_of(pool: ExpertPool, name: str) -> Any:
    """Return the tokenizer of an expert, to be written with a merge.

    Raises:
        InputError: if there is no such expert or tokenizer, or a token of the base has another row there, or a token of
            its own has none.
    """
    if name not in pool.checkpoints:
        known = ", ".join(pool.names)
        raise InputError(f"tokenizer: expected one of {known}, got {name!r}{nearest(name, pool.names)}")
    if name == BASE:
        return pool.tokenizer()
    if not has_tokenizer(pool.checkpoints[name].folder):
        raise InputError(f"tokenizer: {name!r} has none in {pool.checkpoints[name].folder}")
    if not same_files(pool.checkpoints[BASE].folder, pool.checkpoints[name].folder):
        base, own = pool.tokens(), token_list(pool.checkpoints[name].folder) or {}
        moved = [token for token, row in (base or {}).items() if own.get(token) != row]
        rows = pool.checkpoints[BASE].vocabulary
        homeless = [token for token, row in own.items() if rows is not None and row >= rows]
        if moved or homeless:
            fault = f"{moved[0]!r} elsewhere" if moved else f"{homeless[0]!r} beyond the {rows} rows of the embeddings"
            raise InputError(f"tokenizer: {name!r} cannot be used, it has the token {fault}; rows are the base's")
    return tokenizer_to_write(pool.checkpoints[name].folder)


def missing_code(pool: ExpertPool) -> tuple[str, ...]:
    """Return what to tell of code that the base's settings name and that is not beside its weights.

    Raises:
        InputError: if the settings name code outside of their folder.
    """
    folder = pool.checkpoints[BASE].folder
    missing = code_files(folder, (*MODEL_SETTINGS, *PROCESSOR_SETTINGS))[1]
    if not missing:
        return ()
    return (f"{', '.join(missing)}, which auto_map in {folder} names, is not there and cannot be copied",)


def tokenizer_of_merge(pool: ExpertPool) -> tuple[Any, tuple[str, ...]]:
    """Return what is written as the tokenizer of a merge, and what to tell of it.

    Returns:
        The pool's tokenizer; where the base has none that of the first expert that does; None where nobody has one.
    """
    having = [weights.folder for weights in pool.checkpoints.values() if has_tokenizer(weights.folder)]
    if not having:
        return None, ("none of the models has a tokenizer, so none is written",)
    base, whole = pool.checkpoints[BASE], pool.tokenizer_folder
    if whole is None:
        return pool.tokenizer(), ()
    folder = whole if pool.joined else having[0]
    told = () if folder == whole else (f"the base has no tokenizer, the one of {folder} is written",)
    try:
        tokenizer = tokenizer_to_write(folder)
    except InputError as error:
        return TokenizerFiles(folder), (*told, f"{error}; its files are copied as they are")
    if isinstance(tokenizer, TokenizerFiles):
        return tokenizer, told
    try:
        listed = token_list(folder) or {}
    except InputError:
        return tokenizer, told  # files that do not say their tokens cannot contradict
    loaded, rows = tokenizer.get_vocab(), base.vocabulary or 0
    other = next((token for token, row in listed.items() if row < rows and loaded.get(token) != row), None)
    if other is None:
        return tokenizer, told
    fault = f"{folder}: transformers reads {other!r} at {loaded.get(other)}, its files say {listed[other]}"
    return TokenizerFiles(folder), (*told, f"{fault}; they are copied as they are")


def deployed_config(pool: ExpertPool, dtype: torch.dtype, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the ``config.json`` of a merge: the base's, with the dtype that was written and further changes.

    It names the code beside the base's weights if all of that is there to be copied.
    """
    lost = {"_name_or_path", *(["auto_map"] if code_files(pool.checkpoints[BASE].folder, ("config.json",))[1] else ())}
    config = {k: v for k, v in pool.checkpoints[BASE].config.items() if k not in lost}
    short = str(dtype).removeprefix("torch.")
    written = {key: short for key in ("dtype", "torch_dtype") if key in config} or {"dtype": short}
    return config | written | dict(changes or {})


def write_surroundings(
    folder: Path, pool: ExpertPool, config: Mapping[str, Any], tokenizer: Any, settings: str = BASE
) -> None:
    """Write what lies beside the weights: configuration, tokenizer with its chat template, settings of generation.

    Processors' settings are the base's, and so is code that any settings name: it is copied, never run.

    Args:
        folder: to write into.
        pool: the experts.
        config: content of ``config.json``.
        tokenizer: the tokenizer; None: there is none.
        settings: name of the expert that ``generation_config.json`` and a ``tokenizer.model`` are taken from.
    """
    from transformers import GenerationConfig

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    base, source = pool.checkpoints[BASE].folder, pool.checkpoints[settings].folder
    # the latter is not saved anew, and converters read it: where it says the tokens
    copied = dict.fromkeys(("generation_config.json", *(["tokenizer.model"] if pool.tokenizer_folder else [])), source)
    for name, place in (copied | dict.fromkeys(PROCESSOR_SETTINGS, base)).items():
        if (place / name).is_file() and not (folder / name).exists():
            shutil.copyfile(place / name, folder / name)
    copy_code(base, (*MODEL_SETTINGS, *PROCESSOR_SETTINGS), folder)
    described = None if (folder / "generation_config.json").exists() else known_config(folder)
    if described is not None:
        GenerationConfig.from_model_config(described).save_pretrained(folder)


def write_origin(folder: Path, stream: Stream, card: Card, facts: Mapping[str, Any] | None = None) -> None:
    """Write recipe, activation norms that it names, and card, once all tensors of a stream have passed.

    Args:
        folder: to write into.
        stream: the weights.
        card: the model card; one that is there stays.
        facts: what else ``recipe.json`` says.
    """
    digests = stream.digests if isinstance(stream.recipe, Cast) else None  # else the dtype is not the recipe's to say
    document = recipe_document(stream.recipe, stream.pool, digests) | dict(facts or {})
    (folder / RECIPE_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    save_calibration(stream.recipe, stream.pool, folder)
    if not (folder / CARD_FILE).exists():
        (folder / CARD_FILE).write_text(card.of(stream).text(stream.pool), encoding="utf-8")
