"""Code that lies beside weights, for models, tokenizers and processors that transformers has no class for.

``auto_map`` in a settings file names it. It is copied along with what is merged, and never run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sae_moo.errors import InputError
from sae_moo.files.json_text import read_json

MODEL_SETTINGS = ("config.json", "generation_config.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json",)
PROCESSOR_SETTINGS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
LONGEST = 1 << 22
"""Characters of a code file that are searched for what it imports; all of it is copied."""
_FROM = re.compile(r"^[ \t]*from[ \t]+(\.+)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)", re.MULTILINE)
_NAME = re.compile(r"\w+")
_PART = re.compile(r"\w[\w.-]*")


def is_inside(name: str) -> bool:
    """Say whether a name, its parts divided by slashes, stays inside the folder that it is looked up in."""
    return all(_PART.fullmatch(part) for part in name.split("/"))


def code_files(folder: Path, settings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the code files that settings name and those that these import relatively: there, and missing.

    Nothing is run: imports are found in the text. What lies in another repository (``owner/name--module.Class``) is
    found there by whoever loads the result, as it is for the original.

    Args:
        folder: where the settings lie.
        settings: names of JSON files, passed over where they are not there.

    Returns:
        Names within the folder, of files that are there and of files that are not, sorted.

    Raises:
        InputError: if settings cannot be read, or name code outside of the folder.
    """
    found: set[str] = set()
    missing: set[str] = set()
    left = [name for file in settings for name in _named(folder, file)]
    while left:
        name = left.pop()
        if name in found or name in missing:
            continue
        if not (folder / name).is_file():
            missing.add(name)
            continue
        found.add(name)
        left += _imported(folder, name)
    return sorted(found), sorted(missing)


def auto_map(folder: Path, file: str) -> dict[str, Any]:
    """Return the ``auto_map`` of a settings file; empty if there is none."""
    path = folder / file
    stated = read_json(path, "settings as JSON").get("auto_map") if path.is_file() else None
    return stated if isinstance(stated, dict) else {}


def _named(folder: Path, file: str) -> Iterator[str]:
    """Yield the names of the code files that one settings file names."""
    for value in auto_map(folder, file).values():
        for reference in value if isinstance(value, list) else [value]:
            if not isinstance(reference, str) or "--" in reference:
                continue
            name = reference.rpartition(".")[0] + ".py"
            if not is_inside(name):
                raise InputError(f"{folder / file}: auto_map names {reference!r}, which is no module of this folder")
            yield name


def _imported(folder: Path, name: str) -> Iterator[str]:
    """Yield the names of the files that one code file imports relatively."""
    text = (folder / name).read_text(encoding="utf-8", errors="replace")[:LONGEST]
    for dots, module, names in _FROM.findall(text):
        here = PurePosixPath(name).parents
        if len(dots) > len(here):
            continue  # beyond the folder: python would not find it either
        start = here[len(dots) - 1]
        modules = [module] if module else _NAME.findall(re.sub(r"\bas[ \t]+\w+", "", names))
        for each in modules:
            path = start / each.replace(".", "/")
            plain, package = f"{path}.py", f"{path}/__init__.py"
            if (folder / package).is_file() and not (folder / plain).is_file():
                yield package
            elif module or (folder / plain).is_file():  # `from . import x` may name what a package itself defines
                yield plain


def copy_code(folder: Path, settings: tuple[str, ...], target: Path) -> None:
    """Copy the code files that settings name; what is there already stays."""
    for name in code_files(folder, settings)[0]:
        if not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)


def only_code(folder: Path) -> str | None:
    """Return why transformers itself cannot build the causal language model of a folder, if that takes code beside it.

    None where it has a class of its own, which is then used, or where no code is named.
    """
    named = auto_map(folder, "config.json")
    if not named:
        return None
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
    except Exception:  # whatever transformers' many config classes raise at what they find
        kind = None
    if kind in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}:
        return None
    where = ", ".join(code_files(folder, ("config.json",))[0]) or "code that is not there"
    return (
        f"{folder}: its class is in code beside the weights ({where}), which is never run, and transformers has none "
        "of its own: it can be merged by a recipe or a mergekit configuration, not evaluated"
    )
