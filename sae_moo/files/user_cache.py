"""What was computed once on this machine and is worth keeping: small files in the user's cache folder.

Losing them costs time and nothing else, so that a folder that cannot be read or written is no error. What is kept under
a name must be what would be computed anew, whatever was done to the files meanwhile, so names are made of content:

* ``fingerprints``, of weights: `identity.stamp` says of what, beside tensor names; of an adapter its placed tensors and
  their scales, and the base's fingerprint, too.
* ``scores``, of unmerged experts: see `evaluate.expert_scores.ExpertScores`; fingerprints and digests alone.
* ``batches``, how many tokens a GPU computes at once the fastest: the base's configuration, dtype, the device's name,
  the tasks and the libraries' versions. Measured anew it may be another number, which is why it is kept.
* ``costs``, what a token costs of models like a base: its configuration, dtype, the machine and its device, the work
  and the libraries' versions. Measured anew it is another number; a study has a copy of its own.
* ``calibrations``, norms of activations: the model's fingerprint, the base's configuration, dtype, kind of device and
  the token ids that were read; the norms themselves under their own digest, and so sequences of token ids.
* ``traces``, what one forward pass over probe texts left: see `evaluate.traces.Traces`; a digest of the content is
  inside, which is looked at whenever it is read.
* ``likenesses``, features of two models: see `jobs.features`; likewise with a digest of their own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sae_moo.errors import InputError, StorageError
from sae_moo.files.whole import whole_file

log = logging.getLogger(__name__)


def folder(kind: str) -> Path:
    """Return where files of a kind are kept; a place that cannot be if the user has no home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        root = Path(os.devnull)
    return root / "sae_moo" / kind


def kept(kind: str, name: str) -> str | None:
    """Return the text kept under a name; None if there is none that can be read."""
    try:
        return (folder(kind) / name).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def keep(kind: str, name: str, content: str | Callable[[Path], object]) -> None:
    """Keep a file, whole or not at all.

    Args:
        kind: what it is, in the plural.
        name: of the file.
        content: its text, or what writes it to a path, of weights in safetensors.
    """
    try:
        place = folder(kind)
        place.mkdir(parents=True, exist_ok=True)
        with whole_file(place / name, replace=True) as partial:
            if isinstance(content, str):
                partial.write_text(content, encoding="utf-8")
            else:
                content(partial)
    except (OSError, InputError, StorageError, SafetensorError) as error:
        log.info("%s are not kept: %s", kind, error)


def kept_value(kind: str, name: str) -> Any:
    """Return the value kept by `keep_value`; None if there is none, or the file is not what was written."""
    try:
        digest, content = json.loads(kept(kind, name) or "")
        return json.loads(content) if digest == _digest(content) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def keep_value(kind: str, name: str, value: Any) -> None:
    """Keep a value that JSON can hold with a digest of it, so that a damaged file is no other value; see `keep`."""
    content = json.dumps(value)
    keep(kind, name, json.dumps([_digest(content), content]))


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
