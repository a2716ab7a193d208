"""Which part of a model a tensor belongs to: the text model, or a tower, a projector, heads that no forward pass uses.

Told by names, as checkpoints are published: the text model's blocks are those beside its embeddings, and what departs
from their path is another part, if it is called after a sense or the settings describe one. Models of text alone have
one part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sae_moo.experts.layout import BLOCK, TOKEN_EMBEDDINGS, group_name, text_config
from sae_moo.recipe import groups

MTP = "mtp"
"""The sub-model of blocks and heads that predict further tokens."""
_MTP = re.compile(r"mtp|nextn")
# What is called so is never the text model, whatever the settings say.
_TOWER = re.compile(
    r"(vision|visual|image|video|audio|speech)(_?(tower|model|encoder|tokenizer|embed_tokens|projector|projection))?"
    r"|(multi_?modal|mm|vision|visual|audio|speech)_?(projector|connector|adapter)|(embed|patch)_(vision|audio)|vpm|apm"
)
_SENSE = re.compile(
    r"vision|visual|image|video|audio|speech|pixel|vit\b|vit_|projector|connector|resampler|perceiver|talker|wav\b|codec"
)
_LAYER = re.compile(r"(?:^|\.)layer\.(\d+)\.")
_HEADS = ("lm_head", "embed_out", "output", "output_layer", "score", "final_logits_bias")
_WIDE = re.compile(r"embed_tokens|embed_in|wte|wpe|word_embeddings|tok_embeddings")
_SETTINGS = re.compile(r"(?:vision|visual|vit|vq|image|video|audio|speech|perceiver|qformer|projector|thinker)\w*")

Path = tuple[str, ...]


def group_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameter group of every tensor of a model, in the order given.

    Args:
        names: of all its tensors.
        config: its ``config.json``.

    Returns:
        Name -> ``embeddings``, ``block.N`` or ``head`` in the text model; elsewhere the sub-model's name, which is one
        group: what its tensors' names call it (``vision_tower``, ``visual``, ``multi_modal_projector``), or ``mtp``.
    """
    names = list(names)
    several = any(isinstance(value, dict) and _SETTINGS.fullmatch(key) for key, value in config.items())
    paths = sorted({path for name in names if (path := _stem(name)) is not None})
    several = several or any(_TOWER.fullmatch(part) for path in paths for part in path)
    text = _text(paths, names)
    others = {_departure(text, path) for path in paths if path != text and _apart(text or (), path, several)}
    top = text[: max(map(len, others), default=0)] if text else ()
    layers = text_config(config).get("decoder_layers", text_config(config).get("num_hidden_layers"))
    named = _older if others and text is None else group_name
    return {name: _submodel(name, text, others, top if several else (), layers) or named(name) for name in names}


def _older(name: str) -> str:
    """Return the group of a text model's tensor where only towers name their blocks as is usual now (GIT, BLIP)."""
    block = _LAYER.search(name)
    return group_name(name) if block is None else groups.block(int(block[1]))


def _stem(name: str) -> Path | None:
    """Return the path of the blocks that a tensor's is one of, up to the number; None outside blocks."""
    found = BLOCK.search(name)
    return None if found is None else tuple(name[: found.start(1) - 1].split("."))


def _text(stems: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the path of the text model's blocks: nearest to token embeddings, of no sense, the most tensors."""
    embeddings = [tuple(name.split(".")) for name in names if TOKEN_EMBEDDINGS.search(name)]

    def rank(stem: Path) -> tuple[bool, bool, int, int]:
        path = ".".join(stem)
        near = max((_common(stem, each) for each in embeddings), default=0)
        return (
            not any(_TOWER.fullmatch(part) or _MTP.match(part) for part in stem),
            not _SENSE.search(path),
            near,
            sum(name.startswith(f"{path}.") for name in names),
        )

    best = max(stems, key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def _apart(text: Path, other: Path, several: bool) -> bool:
    """Say whether blocks are another part than the text model, not one of several stacks of it."""
    if several or any(_TOWER.fullmatch(part) or _MTP.match(part) for part in other):
        return True
    shared = _common(text, other)
    return other[shared : shared + 1] == ("encoder",) and text[shared : shared + 1] == ("decoder",)


def _departure(text: Path | None, other: Path) -> Path:
    """Return how far a path goes until it is none of the text model's; without one, to what a tower is called."""
    if text is None:
        return other[: next((i for i, part in enumerate(other, start=1) if _TOWER.fullmatch(part)), 1)]
    return other[: _common(text, other) + 1]


def _common(one: Path, other: Path) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _submodel(name: str, text: Path | None, others: Collection[Path], top: Path, layers: object) -> str | None:
    """Return the sub-model of a tensor; None for the text model."""
    path = tuple(name.split("."))
    before = tuple(_until_number(path[:-1]))
    if any(_MTP.match(part) for part in before):
        return MTP
    for start in others:
        if path[: len(start)] == start:
            telling = start[-1] != "model"
            return _called(start[-1] if telling else next(filter(_SENSE.search, before), start[-1]))
    if text is not None and path[: len(text)] == text:
        number = path[len(text)]
        return MTP if number.isdigit() and type(layers) is int and 0 < layers <= int(number) else None
    called = next((part for part in (*before, path[-1]) if _TOWER.fullmatch(part)), None)
    if called is not None:
        return _called(called)
    head = any(part in _HEADS for part in path[: len(top)])  # beside the text model or higher up
    if not top or path[: len(top)] == top or head or _WIDE.search(name):
        return None
    if path[: len(top) - 1] != top[:-1]:
        return _called(path[0])
    part = path[len(top) - 1]
    if top == text:  # beside the blocks themselves lie the text model's own norms
        return _called(part) if _SENSE.search(part) else None
    return _called(part)


def _until_number(path: Path) -> Iterator[str]:
    for part in path:
        if part.isdigit():
            return
        yield part


def _called(part: str) -> str:
    """Return a sub-model's name, which no other group has."""
    return f"{part}_model" if part in (groups.EMBEDDINGS, groups.HEAD) else part
