"""Operators: ways to merge two models in an order, and merges of more as chains of them.

An operator is a merge method with the weights of the first and of the second model and its settings. A chain applies
operators one after another to experts in an order, ``((a op b) op c)``, as SimMerge does (Bolton et al. 2026, arXiv
2601.09473). The usual ones stand in the rows of `methods.METHODS`, as `methods.Pairing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Any

from sae_moo.errors import InputError, nearest
from sae_moo.recipe.methods import METHODS, Pairing
from sae_moo.recipe.nodes import Cast, Expert, Merge, Recipe
from sae_moo.recipe.rows import Scalar, number
from sae_moo.recipe.section import (
    AfterValidator,
    Field,
    Section,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)


@dataclass(frozen=True, slots=True)
class Operator:
    """One way to merge two models, in an order.

    Args:
        name: what tables and configurations call it.
        method: the merge method, ``package/name`` of an installed package's.
        weights: of the first model and of the second, as `Merge` has them.
        settings: of the method, by name, sorted; what is left out has its default.
    """

    name: str
    method: str
    weights: tuple[float, float]
    settings: tuple[tuple[str, Scalar], ...] = field(default=())

    def __post_init__(self) -> None:
        first, second = (number(weight, f"operator {self.name}: weights") for weight in self.weights)
        object.__setattr__(self, "weights", (first, second))
        object.__setattr__(self, "settings", tuple(sorted(dict(self.settings).items())))

    @property
    def symmetric(self) -> bool:
        """Whether the order of the two makes no difference: methods take inputs in any order with their weights."""
        return METHODS.find(self.method).weights == "unused" or self.weights[0] == self.weights[1]

    def made(self, merge: Merge) -> bool:
        """Say whether this operator makes such a merge; what whole models told of it since makes no difference."""
        row = METHODS.find(self.method)
        told = () if row.whole_model is None else (row.whole_model.setting,)
        settings = {name: value for name, value in row.filled(merge.params).items() if name not in told}
        return (merge.method, merge.weights, settings) == (row.name, self.weights, row.filled(self.settings))


class OperatorSection(Section):
    """An operator as a YAML has it: the plain name of a usual one or of a merge method, or these keys."""

    name: Annotated[str, Field(min_length=1, max_length=60)] | None = Field(
        default=None, description="what tables call it; null: like the method"
    )
    method: str = Field(description="a merge method of two models, or `package/name` of an installed package")
    weights: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        validate_default=True,
        description="of the first model and of the second; null: as the method's plain name has them",
    )
    settings: dict[str, Scalar] = Field(
        default={},
        validate_default=True,
        description="settings of the method; those left out are as the plain name has them",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """Read a plain name as the operator that it is the name of."""
        if not isinstance(given, str):
            return given
        usual = next((each for row in METHODS.values() for each in row.pairings if each.name == given), None)
        if usual is not None:
            method = next(row.name for row in METHODS.values() if usual in row.pairings)
            return {
                "name": given,
                "method": method,
                "weights": list(usual.weights),
                "settings": {**usual.settings},
            }
        if given not in METHODS and "/" not in given:
            near = nearest(given, [*NAMES, *METHODS])
            raise ValueError(f"expected an operator ({', '.join(NAMES)}) or a merge method, got {given!r}{near}")
        return {"name": given, "method": given}

    @field_validator("method")
    @classmethod
    def _of_two(cls, method: str) -> str:
        row = METHODS.find(method)
        if not row.takes(2):
            raise ValueError(f"expected a merge method of two models; {row.name} takes {row.inputs[1]}")
        return row.name

    @field_validator("weights")
    @classmethod
    def _possible(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
        method = info.data.get("method")
        if method is None:
            return weights
        row = METHODS[method]
        weights = [*row.pairing().weights] if weights is None else weights
        if row.weights == "unused" and weights[0] != weights[1]:
            raise ValueError(f"expected equal weights, {row.name} does not use them; got {weights}")
        infinite = [weight for weight in weights if not isfinite(weight)]
        if infinite:
            raise ValueError(f"expected finite numbers, got {infinite[0]}")
        fault = row.weights_fault([number(weight, "weights") for weight in weights], normalized=True)
        if fault is not None:
            raise ValueError(fault)
        return weights

    @field_validator("settings")
    @classmethod
    def _of_the_method(cls, settings: dict[str, Scalar], info: ValidationInfo) -> dict[str, Scalar]:
        method = info.data.get("method")
        if method is None:
            return settings
        row = METHODS[method]
        settings = {**row.pairing().settings, **settings}
        for name, value in settings.items():
            fault = row.settings[name].fault(value) if name in row.settings else row.unknown(name)
            if fault is not None:
                raise ValueError(f"{name}: {fault}" if name in row.settings else fault)
        for fault in () if row.faults is None else row.faults(row.filled(settings)):
            raise ValueError(fault)
        return settings

    @property
    def operator(self) -> Operator:
        """The operator."""
        first, second = METHODS[self.method].pairing().weights if self.weights is None else self.weights
        return Operator(self.name or self.method, self.method, (first, second), tuple(self.settings.items()))


def _named_once(sections: list[OperatorSection]) -> list[OperatorSection]:
    names = [section.operator.name for section in sections]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"expected every operator once, got {twice[0]!r} twice; give them a name each")
    return sections


OperatorSections = Annotated[list[OperatorSection], Field(min_length=1, max_length=500), AfterValidator(_named_once)]
"""Operators in a section; names are different. `operators_of` returns what they are."""


def operators_of(sections: Sequence[OperatorSection]) -> tuple[Operator, ...]:
    """Return the operators that a section names, in its order."""
    return tuple(section.operator for section in sections)


def named(*names: str) -> tuple[Operator, ...]:
    """Return operators by their plain names, in this order.

    Raises:
        InputError: if there is none of such a name; it says what there is.
    """
    sections = []
    for name in names:
        try:
            sections.append(OperatorSection.model_validate(name))
        except ValidationError as error:
            raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    return operators_of(sections)


def _usual(method: str, pairing: Pairing) -> Operator:
    return Operator(pairing.name, method, pairing.weights, tuple(pairing.settings.items()))


NAMES = tuple(each.name for row in METHODS.values() for each in row.pairings)
"""Plain names of operators that the rows of the merge methods say more of than defaults."""

USUAL = tuple(_usual(row.name, each) for row in METHODS.values() for each in row.pairings if each.usual)
"""What is tried where nobody says which operators are, in the order of the methods."""


def merged(operator: Operator, first: Recipe, second: Recipe) -> Recipe:
    """Return two recipes merged by an operator; not yet rounded."""
    return Merge(operator.method, (first, second), operator.weights, operator.settings)


def chained(operators: Sequence[Operator], experts: Sequence[str]) -> Recipe:
    """Return experts merged one after another, ``((a op b) op c)``; not yet rounded.

    Args:
        operators: one less than experts.
        experts: names, two or more, in the order of the merges.

    Raises:
        ValueError: for another number of operators, or fewer than two experts.
    """
    if len(experts) < 2 or len(operators) != len(experts) - 1:
        raise ValueError(f"expected experts and one operator less, got {len(experts)} and {len(operators)}")
    recipe: Recipe = Expert(experts[0])
    for operator, name in zip(operators, experts[1:], strict=True):
        recipe = merged(operator, recipe, Expert(name))
    return recipe


def chain_of(recipe: Recipe, operators: Sequence[Operator]) -> tuple[tuple[Operator, ...], tuple[str, ...]] | None:
    """Read a candidate as a chain of operators.

    Args:
        recipe: a candidate, or what it is rounded from.
        operators: those that are known; where several make the same merge, the first is told.

    Returns:
        The operators and, one more, the experts' names in the order of the merges; None of what is anything else:
        pruned, repaired, a single expert, merged by other operators or from other trees.
    """
    node = recipe.input if isinstance(recipe, Cast) else recipe
    found: list[Operator] = []
    experts: list[str] = []
    while isinstance(node, Merge):
        if len(node.inputs) != 2 or not isinstance(node.inputs[1], Expert):
            return None
        merge = node
        operator = next((each for each in operators if each.made(merge)), None)
        if operator is None:
            return None
        found.append(operator)
        experts.append(node.inputs[1].name)
        node = node.inputs[0]
    if not found or not isinstance(node, Expert):
        return None
    return tuple(reversed(found)), (node.name, *reversed(experts))


def pair_of(recipe: Recipe, operators: Sequence[Operator]) -> tuple[Operator, str, str] | None:
    """Read a candidate as a merge of two experts by an operator; None of what is anything else, see `chain_of`.

    Returns:
        The operator, and the names of the first and of the second expert as the recipe has them; of a symmetric
        operator (`Operator.symmetric`) the other order is the same model.
    """
    chain = chain_of(recipe, operators)
    if chain is None or len(chain[0]) != 1:
        return None
    (operator,), (first, second) = chain
    return operator, first, second
