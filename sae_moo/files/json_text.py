"""JSON text and files that hold one object, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_moo.errors import InputError


def parsed(text: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None) -> Any:
    """Return what JSON text holds; `pairs` makes each object in it of its pairs.

    Raises:
        ValueError: if it is not JSON, or Python cannot hold it, saying why in one line.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except InputError:  # of `pairs`
        raise
    except json.JSONDecodeError as error:
        where = f" in line {error.lineno}" if error.lineno > 1 else f" at character {error.colno}"
        raise ValueError(f"not JSON: {error.msg}{where}") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # Python reads integers up to some thousand digits
        raise ValueError(f"a number of too many digits: {error}") from error


def read_json(
    path: Path, what: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Read a JSON object; `pairs` makes each object in it of its pairs.

    Raises:
        InputError: saying that `what` was expected.
    """
    try:
        document = parsed(path.read_text(encoding="utf-8"), pairs)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: expected {what}, there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: expected {what}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: expected {what}: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected {what}, got {type(document).__name__}")
    return document
