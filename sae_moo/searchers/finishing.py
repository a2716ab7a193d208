"""What follows a search: the members of its front that stand for it best are repaired, and evaluated as trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.objectives.front import Front
from sae_moo.recipe import Cast, Recipe, Repair
from sae_moo.recipe.structure import chain, repair_of
from sae_moo.searchers.searcher import Proposal

REPAIR = "repair"
"""The operator of a trial that was repaired."""


def repaired(recipe: Recipe, calibration: str) -> Cast | None:
    """Return a candidate with a repair under its cast; None if there is none to be made.

    There is none where it has no pruning of its own.

    Args:
        recipe: a candidate.
        calibration: digest of the token sequences that are read.
    """
    if not isinstance(recipe, Cast) or repair_of(recipe) is not None or not chain(recipe):
        return None
    return Cast(Repair(recipe.input, calibration), recipe.dtype)


class Finishing:
    """Asks for repaired members of a front.

    They come in an order that begins well however early it ends: each one next adds the most to the hypervolume of
    those before it. Members that are not sparse, or of which there is nothing to repair (`repaired`), are left out.
    What is asked for depends on what was told and on nothing else, so that it is replayed as a search is (`recall`); a
    search that goes on with a larger budget has another front, of which those that were repaired before are not asked
    for again.

    Args:
        count: how many members are repaired: the first of the order.
        texts: returns the digest of the token sequences that are read, once somebody is to be repaired; None where
            nobody is.
        objectives: what the front is of.
        constraints: limits.

    Attributes:
        asked: how many were asked for, or recalled.
    """

    def __init__(
        self,
        count: int = 0,
        texts: Callable[[], str] | None = None,
        objectives: Sequence[Objective] = (),
        constraints: Sequence[Constraint] = (),
    ) -> None:
        if count and texts is None:
            raise ValueError("texts: expected what returns the digest of those that a repair reads, got None")
        self.count = count
        self.asked = 0
        self._texts = texts
        self._calibration: str | None = None
        self._objectives = tuple(objectives)
        self._front: Front[Evaluation] = Front(objectives, constraints)
        self._generation = 0
        self._done: set[Recipe] = set()
        self._order: list[Evaluation] | None = None

    @property
    def left(self) -> bool:
        """Whether there is another one to ask for; the front is taken as it is."""
        return self._next(self.count) is not None

    def ask(self) -> Proposal | None:
        """Return the next one, or None."""
        parent = self._next(self.count)
        if parent is None:
            return None
        return self._proposal(parent, self.calibration())

    def calibration(self) -> str:
        """Return the digest of the token sequences that are read; what it takes to know it is done once.

        Raises:
            InputError: if there are none, or too short ones.
        """
        if self._calibration is None:
            assert self._texts is not None  # some are to be repaired
            self._calibration = self._texts()
        return self._calibration

    def recall(self, recipe: Recipe) -> Proposal | None:
        """Return the next one as it was asked for in an earlier run, perhaps one of more, or repaired on other texts.

        Args:
            recipe: what was asked for then.
        """
        parent, node = self._next(None), repair_of(recipe)
        return None if parent is None or node is None else self._proposal(parent, node.calibration)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in an evaluation, of the search's own; of repaired members there is nothing to learn."""
        if proposal.operator == REPAIR:
            return
        self._generation = max(self._generation, proposal.generation)
        front = self._front.after(evaluation) if self._objectives else self._front
        if front is not self._front:
            self._front, self._order = front, None

    def _proposal(self, parent: Recipe, calibration: str) -> Proposal:
        recipe = repaired(parent, calibration)
        assert recipe is not None  # only such stand in the order
        self.asked += 1
        self._done.add(parent)
        return Proposal(recipe, (parent,), REPAIR, self._generation)

    def _next(self, count: int | None) -> Recipe | None:
        """Return the first of so many members that was not asked for yet."""
        if self._order is None:
            self._order = _spread(self._front) if self._front.members else []
        return next((each.recipe for each in self._order[:count] if each.recipe not in self._done), None)


def _spread(front: Front[Evaluation]) -> list[Evaluation]:
    """Return the members that can be repaired, each the one that adds most to those before it.

    Of equal ones the first comes first, as the front has them ranked.
    """
    once = {each.recipe: each for each in front.ranked}  # a recipe that was asked for again stands there again
    left = [each for each in once.values() if each.sparsity > 0 and repaired(each.recipe, "0" * 64) is not None]
    order: list[Evaluation] = []
    taken: Front[Evaluation] = Front(front.objectives, front.constraints)
    while left:
        best = max(left, key=taken.gain)
        left.remove(best)
        order.append(best)
        taken = taken.after(best)
    return order
