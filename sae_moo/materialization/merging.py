"""One merge of a recipe: what is the same for all tensors, and the steps of its method on many of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_moo.materialization.guarded import guarded
from sae_moo.materialization.ops.engine import PENDING, Asked, Engine
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.questions import Asking, Question
from sae_moo.materialization.ops.steps import Step
from sae_moo.recipe import Merge
from sae_moo.recipe.methods import METHODS, Method
from sae_moo.recipe.rows import Rows


@dataclass(frozen=True, slots=True)
class Given:
    """Weights and settings of a merge for one tensor, and whether it needs the base."""

    weights: list[float]
    params: Mapping[str, Any]
    needs_base: bool


@dataclass(frozen=True, slots=True)
class Merging:
    """What does not change from tensor to tensor of one merge.

    Args:
        node: the merge.
        method: its row of the catalogue.
        order: of its inputs.
        keys: what identifies them, in that order.
        weights: of the inputs.
        params: all settings as the recipe has them.
        numbers: those of them that are rows of numbers.
    """

    node: Merge
    method: Method
    order: tuple[int, ...]
    keys: tuple[str, ...]
    weights: Rows
    params: Mapping[str, Any]
    numbers: Mapping[str, Rows]
    _given: dict[tuple[int, int], Given] = field(default_factory=dict)
    _steps: dict[tuple[int, bool], Step] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Merge) -> Merging:
        """Read a merge."""
        method = METHODS.find(node.method)
        params = method.filled(node.params) | dict(method.fixed)
        weights = Rows.of(node.weights)
        numbers = {name: Rows.of(value) for name, value in sorted(params.items()) if isinstance(value, tuple)}

        def column(i: int) -> Iterator[float]:
            """Yield every number that belongs to one input: inputs listed twice are told apart by them."""
            for rows in (weights, *numbers.values()):
                yield from rows.column(i)

        order = tuple(sorted(range(len(node.inputs)), key=lambda i: (node.inputs[i].key, *column(i))))
        keys = tuple(node.inputs[i].key for i in order)
        return cls(node, method, order, keys, weights, params, numbers)

    def given(self, position: int, group: int, groups: int) -> Given:
        """Return what the merge of one tensor is given; many tensors are given the same.

        Args:
            position: of the tensor in the pool's order.
            group: the tensor's parameter group.
            groups: how many groups there are.
        """
        placed = [rows for rows in (self.weights, *self.numbers.values()) if rows.placed]
        by_tensor = any(len(rows.rows) != groups for rows in placed)
        key = (position if by_tensor else -1, group if placed else -1)
        if key not in self._given:
            place = position, group, groups
            weights = self.weights.at(*place)
            rows = {name: numbers.at(*place) for name, numbers in self.numbers.items()}
            order = self.order
            turned = {
                name: tuple(row[i] for i in order) if len(row) == len(order) else row for name, row in rows.items()
            }
            params = {**self.params, **turned}
            needed = self.method.needs_base(params)
            self._given[key] = Given([float(weights[i]) for i in order], params, needed)
        return self._given[key]

    def begun(self, given: Given, operands: Operands, place: Place) -> Step | Asking:
        """Return the method's step on one tensor, or the method at work on it."""
        key = id(given), place.prunable
        if key in self._steps:
            return self._steps[key]
        start = guarded(METHODS, self.method, self.method.function)
        made: Step | Asking = start(operands, list(given.weights), place)
        if self.method.weighted_sum and self.method.guest is None and not isinstance(made, Generator):
            self._steps[key] = made  # it looks at nothing but its weights
        return made

    def steps(
        self, engine: Engine, begun: Sequence[tuple[int, Step | Asking, Operands, Place]]
    ) -> Iterator[tuple[int, Step, Operands]]:
        """Yield the steps of the method on some tensors, its questions about all of them asked together.

        Args:
            engine: who answers; what it cannot answer yet is left out.
            begun: for each tensor its index in the band, what `begun` has made of it, operands and place.
        """
        ask = guarded(METHODS, self.method, _ask)
        asking: list[tuple[int, Asking, Any, Operands, Place]] = []
        for i, made, operands, place in begun:
            if isinstance(made, Generator):
                asking.append((i, made, None, operands, place))
            else:
                yield i, made, operands
        while asking:
            questions = []
            for i, made, reply, operands, place in asking:
                question, step = ask(made, reply)
                if question is None:
                    assert step is not None
                    yield i, step, operands
                else:
                    about = Asked(question, operands, place, (self.node, place.tensor))
                    questions.append((i, made, about, operands, place))
            replies = engine.answers([about for _, _, about, _, _ in questions])
            asking = [
                (i, made, reply, operands, place)
                for (i, made, _, operands, place), reply in zip(questions, replies, strict=True)
                if reply is not PENDING
            ]


def _ask(made: Asking, reply: Any) -> tuple[Question | None, Step | None]:
    """Return a method's next question, or its step."""
    try:
        return made.send(reply), None
    except StopIteration as finished:
        return None, finished.value
