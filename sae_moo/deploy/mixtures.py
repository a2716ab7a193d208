"""Mixtures that lack experts: what an export leaves out, and why formats that leave nothing out cannot hold them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.stream import Stream
from sae_moo.errors import InputError
from sae_moo.experts.mixtures import Mixture, known_mixture, mixture
from sae_moo.experts.removed_experts import removed_experts

_NUMBER = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class FewerExperts:
    """What is left of a model's mixtures without the experts that are removed.

    Args:
        gone: how many experts go of each mixture.
        experts: how many each has.
        numbers: the tensors that are one expert's: name -> the number that this expert has now; None: it goes.
        kept: the tensors that hold all experts: name -> axis, and the indices along it that stay.
        config: what changes in ``config.json``.
    """

    gone: int
    experts: int
    numbers: Mapping[str, int | None]
    kept: Mapping[str, tuple[int, Tensor]]
    config: Mapping[str, Any]


def as_expert(name: str, expert: int) -> str:
    """Return what a tensor of an expert is called when this has another number."""
    return _NUMBER.sub(str(expert), name)


def fewer_experts(stream: Stream, without: Collection[int] = ()) -> FewerExperts:
    """Return what is left of the mixtures of a stream's model.

    Of a mixture without any expert, which writes nothing, the last ones go.

    Args:
        stream: the weights.
        without: positions of blocks that are left out, mixture and all.

    Raises:
        InputError: if its mixtures are not known, lack no experts, or not as many each: a configuration has one number
            for all.
    """
    mixtures = mixture(stream.pool)
    removed = removed_experts(mixtures, stream.tensor)
    empty = _empty(mixtures, stream, removed)
    counts = {block: int(removed[block].sum()) if block in removed else 0 for block in mixtures.routers}
    counts = {block: count for block, count in counts.items() if block not in without}
    going = {count for block, count in counts.items() if block not in empty}
    if len(going) > 1:
        raise InputError(
            "config.json has one number of experts for all mixtures, and these lack different numbers of them: "
            f"{', '.join(f'{count} in block {block}' for block, count in counts.items())}; prune with the scope "
            "moe-experts once more"
        )
    gone = going.pop() if going else 0
    if not gone:
        raise InputError(f"no expert of a mixture of {mixtures.experts} is zero together with its row of the router")
    numbers: dict[str, int | None] = {}
    kept: dict[str, tuple[int, Tensor]] = {}
    left = mixtures.experts - gone
    for block, held in mixtures.held.items():
        staying = (~removed[block]).nonzero().flatten() if block in removed else torch.arange(left)
        place = {int(expert): i for i, expert in enumerate(staying)}
        for each in held:
            name = each.info.name
            if each.expert is None:
                kept[name] = each.axis, staying
            else:
                numbers[name] = place.get(each.expert)
    return FewerExperts(gone, mixtures.experts, numbers, kept, dict.fromkeys(mixtures.settings, left))


def check_whole(stream: Stream, what: str) -> None:
    """Raise InputError if a model's mixtures lack experts, which a runtime that is given its weights would choose.

    Args:
        stream: the weights; routers are read, and experts whose row of it is zero.
        what: what would hold all of them, such as ``format hf``.
    """
    mixtures = known_mixture(stream.pool)
    removed = {} if mixtures is None else removed_experts(mixtures, stream.tensor)
    if mixtures is not None and removed:
        block, row = next(iter(removed.items()))
        smaller = " or ".join(name for name, form in FORMATS.items() if form.smaller)
        raise InputError(
            f"{what} cannot hold this model: {int(row.sum())} of the {mixtures.experts} experts in the mixture of "
            f"block {block} are removed, and a runtime that finds zeros in their place lets the router choose them; "
            f"export a trial in the format {smaller}, which leaves them out"
        )


def _empty(mixtures: Mixture, stream: Stream, removed: Mapping[int, Tensor]) -> set[int]:
    """Return the blocks whose mixtures have no expert at all."""
    return {
        block
        for block, held in mixtures.held.items()
        if block not in removed
        and not stream.tensor(mixtures.routers[block].name).any()
        and not any(bool(stream.tensor(each.info.name).any()) for each in held)
    }
