"""What a candidate lacks as a whole: its own prunings, the blocks and units that they remove."""

from __future__ import annotations

from sae_moo.recipe.nodes import Cast, Prune, Recipe, Repair
from sae_moo.recipe.scopes import BLOCKS


def chain(recipe: Recipe) -> tuple[Prune, ...]:
    """Return a candidate's own prunings, innermost first: those between its cast (or repair) and what was merged."""
    node = recipe.input if isinstance(recipe, Cast) else recipe
    if isinstance(node, Repair):
        node = node.input
    prunings: list[Prune] = []
    while isinstance(node, Prune):
        prunings.append(node)
        node = node.input
    return tuple(reversed(prunings))


def merged(recipe: Recipe) -> Recipe:
    """Return what a candidate's own prunings were applied to."""
    prunings = chain(recipe)
    if prunings:
        return prunings[0].input
    return recipe.input if isinstance(recipe, Cast) else recipe


def units_gone(recipe: Recipe, scope: str) -> tuple[frozenset[int], ...]:
    """Return the units that a candidate's own prunings of a structured scope remove, by block in the pool's order.

    Args:
        recipe: a candidate.
        scope: one of `STRUCTURED`.

    Returns:
        The numbers of the units of each block; empty if no such pruning is resolved to units.
    """
    rows = [node.units for node in chain(recipe) if node.scope == scope and node.units is not None]
    if not rows:
        return ()
    return tuple(frozenset().union(*(units[block] for units in rows)) for block in range(len(rows[0])))


def removed_blocks(recipe: Recipe) -> frozenset[int]:
    """Return the positions among the blocks of those that a candidate's own prunings remove as a whole."""
    return frozenset(block for block, units in enumerate(units_gone(recipe, BLOCKS)) if units)


def repair_of(recipe: Recipe) -> Repair | None:
    """Return the repair that a candidate ends in, under its cast; None if it ends in none."""
    return recipe.input if isinstance(recipe, Cast) and isinstance(recipe.input, Repair) else None


def unrepaired(recipe: Recipe) -> Recipe:
    """Return a candidate without the repair that it ends in."""
    node = repair_of(recipe)
    return recipe if node is None or not isinstance(recipe, Cast) else Cast(node.input, recipe.dtype)
