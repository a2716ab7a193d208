"""Documents of the harness: which are the same, and which may be examples in the prompts of others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_moo.evaluate import lm_eval
from sae_moo.evaluate.splits import Identity, plain
from sae_moo.objectives.scores import Split


@dataclass(frozen=True, slots=True)
class Place:
    """One document of a task, or of a group of tasks.

    Args:
        leaf: index of the harness task.
        number: of the document among those it comes from.
        doc: the document.
    """

    leaf: int
    number: int
    doc: Any


def identities(leaves: Sequence[Any], pools: Mapping[Split, Sequence[Place]]) -> dict[Split, list[Identity]]:
    """Return what makes each document of the pools this one; the whole is made only where prompts are the same."""
    prompts = {split: [_prompt(leaves[place.leaf], place.doc) for place in pool] for split, pool in pools.items()}
    standing = Counter(prompt for pool in prompts.values() for prompt in pool)
    return {
        split: [
            Identity(prompt, whole(leaves[place.leaf], place.doc) if standing[prompt] > 1 else prompt)
            for place, prompt in zip(pool, prompts[split], strict=True)
        ]
        for split, pool in pools.items()
    }


def whole(leaf: Any, doc: Any) -> str:
    """Return all that a model and a metric see of a document, as text; fields that neither reads are no part of it."""
    try:
        seen = lm_eval.seen(leaf, doc)
    except Exception:  # anybody's template or code; a document that cannot be asked is refused where it is chosen
        seen = [doc]
    return canonical(seen)


def none_of(leaf: Any, documents: Iterable[Any]) -> list[Callable[[Any], bool]]:
    """Return rules for what is none of some documents, the strictest first: no prompt of theirs, and none of them."""
    listed = list(documents)
    prompts, wholes = {_prompt(leaf, doc) for doc in listed}, {whole(leaf, doc) for doc in listed}
    return [lambda doc: _prompt(leaf, doc) not in prompts, lambda doc: whole(leaf, doc) not in wholes]


def canonical(value: Any) -> str:
    """Return a document, or what is seen of one, as text that is the same for the same."""
    return json.dumps(value, sort_keys=True, default=str)


def _prompt(leaf: Any, doc: Any) -> str:
    try:
        text = leaf.doc_to_text(doc)
    except Exception:  # as in `whole`
        text = None
    return plain(text if isinstance(text, str) and text.strip() else canonical(doc))
