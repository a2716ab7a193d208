"""Parameter groups: sets of tensors that share coefficients, by name; the embeddings, each block, the head.

What is not the text model (a vision tower, a projector) is a group of its own behind these, a sub-model each.
"""

from __future__ import annotations

EMBEDDINGS = "embeddings"
HEAD = "head"
"""The final norm, and the head unless it is tied to the embeddings."""
_BLOCK = "block."
THIRDS = ("early", "middle", "late")
"""Parts of a model's depth, by which models of different depths are compared."""


def block(number: int) -> str:
    """Return the name of a transformer block's group."""
    return f"{_BLOCK}{number}"


def in_block(group: str) -> bool:
    """Say whether a group is a transformer block."""
    return group.startswith(_BLOCK)


def is_submodel(group: str) -> bool:
    """Say whether a group is a whole sub-model beside the text model."""
    return group not in (EMBEDDINGS, HEAD) and not in_block(group)


def model_order(group: str) -> tuple[int, int, str]:
    """Return what puts groups in the order of the model: embeddings, blocks by number, head, sub-models by name."""
    if group == EMBEDDINGS:
        return (0, 0, "")
    if group == HEAD:
        return (2, 0, "")
    return (1, int(group.removeprefix(_BLOCK)), "") if in_block(group) else (3, 0, group)


def thirds(count: int) -> tuple[range, range, range]:
    """Return which of so many layers are early, in the middle and late.

    Each part has a third of them, rounded up, so that none is empty, and the middle one more where it would not be in
    the middle else: where the number is no multiple of three they overlap.

    Raises:
        ValueError: for less than one layer.
    """
    if count < 1:
        raise ValueError(f"count: expected at least one layer, got {count}")
    size = -(-count // 3)
    before = (count - size) // 2
    return range(size), range(before, count - before), range(count - size, count)
