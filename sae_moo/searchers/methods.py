"""The merge method of each child, chosen by what children of each have gained.

Ours: the credit of a bandit over operators, applied to the merges within a search (`schedule.Bandit`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sae_moo.objectives import Constraint, Evaluation, Objective
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.rows import Scalar
from sae_moo.searchers.credit import Gains
from sae_moo.searchers.schedule import Bandit, Choice, Uniform
from sae_moo.searchers.searcher import Proposal

METHOD = "merge method"  # the number of a proposal that says the place of its method
LIKELY = "merge method probability"  # the one that says how likely it was
SCALE = "scale"
FLOOR = 0.05  # least probability of a method, of few


class MethodChoice:
    """Draws merge methods and is told what came of them; the calls replayed restore its state.

    Args:
        methods: names, two at least, in the order that `METHOD` numbers them.
        objectives: what is maximized; a method is credited with the hypervolume that its child adds.
        constraints: limits; what breaks one gains nothing.
    """

    def __init__(
        self, methods: Sequence[str], objectives: Sequence[Objective], constraints: Sequence[Constraint]
    ) -> None:
        self.methods = tuple(methods)
        places = tuple(float(i) for i in range(len(self.methods)))
        self.bandit = Bandit(Choice(places, floor=min(FLOOR, 0.5 / len(places))))
        self._gains = Gains(objectives, constraints)

    def drawn(self, rng: Uniform) -> tuple[str, tuple[tuple[str, Scalar], ...], dict[str, float]]:
        """Return the method of one child, its settings, and the numbers that its proposal tells of the choice.

        The settings are those usual for two models; its weights are its own, so that nothing is scaled.
        """
        place = int(self.bandit.draw(rng))
        row = METHODS.find(self.methods[place])
        settings = {name: value for name, value in row.pairing().settings.items() if name != SCALE}
        numbers = {METHOD: float(place), LIKELY: self.bandit.probabilities[place]}
        return row.name, tuple(settings.items()), numbers

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take in an evaluation, of whatever the search has proposed."""
        gain = self._gains.take(evaluation)
        if METHOD in proposal.numbers:
            self.bandit.credit(proposal.numbers[METHOD], gain)
