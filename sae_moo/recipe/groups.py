"""Parameter groups: sets of tensors that share coefficients, by name; the embeddings, each block, the head."""

from __future__ import annotations

EMBEDDINGS = "embeddings"
HEAD = "head"
"""The final norm, and the head unless it is tied to the embeddings."""
_BLOCK = "block."


def block(number: int) -> str:
    """Return the name of a transformer block's group."""
    return f"{_BLOCK}{number}"


def in_block(group: str) -> bool:
    """Say whether a group is a transformer block."""
    return group.startswith(_BLOCK)


def model_order(group: str) -> tuple[int, int]:
    """Return what puts groups in the order of the model: embeddings, blocks by number, head."""
    if group == EMBEDDINGS:
        return (0, 0)
    return (2, 0) if group == HEAD else (1, int(group.removeprefix(_BLOCK)))
