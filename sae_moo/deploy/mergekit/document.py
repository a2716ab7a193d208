"""A mergekit configuration as a value: what `reading` found in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sae_moo.deploy.mergekit.table import TABLE, Row, Value
from sae_moo.experts.vocabulary import Policy
from sae_moo.files.marked_yaml import Key, Places
from sae_moo.recipe import BASE

WHAT = "mergekit configuration"
AUTO = "auto"  # the chat template that most of the models have


@dataclass(frozen=True, slots=True)
class Filtered:
    """A value for the tensors whose names contain `filter` (None: all): one number, or a gradient over the layers."""

    filter: str | None
    values: tuple[Value, ...]


Setting = tuple[Filtered, ...]
Scope = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Source:
    """One model of a slice, with its own parameters.

    Args:
        model: as the file has it.
        count: how often the slice names that model before.
        scope: its parameters.
        key: its place in the file; None if mergekit adds it.
        first: which of its layers is the first; the others follow.
    """

    model: str
    count: int
    scope: Scope
    key: Key | None
    first: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the result with the models they are merged from.

    Args:
        start: first layer.
        stop: layer after the last; None: the models' last.
        sources: the models, the base among them where the file or mergekit's rule has it.
        scope: parameters of the slice.
        key: its place in the file.
    """

    start: int
    stop: int | None
    sources: tuple[Source, ...]
    scope: Scope
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A mergekit configuration.

    Args:
        places: where its values stand.
        name: how other merges of the same file call it; None: not at all.
        method: mergekit's name of the method.
        base: the base model as the file has it, None if it has none.
        slices: one for all layers, unless the file has ``slices``; these may repeat, drop or move layers.
        scopes: parameters of the module and of the whole, in that order.
        names: model as the file has it -> name of an expert; one of them is ``base``.
        dtype: of the output; None: as the base is stored.
        vocabulary: what the output's tokens are.
        tokenizer: name of the expert whose tokenizer the output gets; None: not said, so the base's.
        chat_template: a Jinja template, ``auto`` (the one that most of the models have), or None.
        notes: what the user should know.
    """

    places: Places
    name: str | None
    method: str
    base: str | None
    slices: tuple[Slice, ...]
    scopes: tuple[Scope, ...]
    names: Mapping[str, str]
    dtype: str | None
    vocabulary: Policy
    tokenizer: str | None
    chat_template: str | None
    notes: tuple[str, ...]

    @property
    def row(self) -> Row:
        """The method's row of the table."""
        return TABLE[self.method]

    @property
    def models(self) -> dict[str, str]:
        """Name of an expert -> the model as the file has it, the base first.

        A model that stands several times in a slice is one expert for each order of its layers.
        """
        found = {name: model for model, name in self.names.items()}
        for model, count in self._orders():
            found.setdefault(self.named(model, count), model)
        return {BASE: found.pop(BASE), **found}

    @property
    def sources(self) -> dict[str, str]:
        """Name of an expert -> where it is, the base first; of an adapter over the base the adapter."""
        models = self.models
        under = f"{models[BASE]}+"
        return {name: model.removeprefix(under) for name, model in models.items()}

    @property
    def takes(self) -> tuple[str, ...]:
        """What may be the names of other merges: the models, without adapters over them."""
        return tuple(model.partition("+")[0] for model in self.names)

    @property
    def layers(self) -> dict[str, tuple[int | None, ...]]:
        """Name of an expert -> its layer for each of the result's, None where it has no part; empty: as they lie."""
        orders = self._orders()
        return {self.named(*each): order for each, order in orders.items()} if self.slices[-1].stop is not None else {}

    def named(self, model: str, count: int = 0) -> str:
        """Return the expert that a model is, where a slice names it for the `count`-th time."""
        orders = self._orders()
        if count == 0 or orders[model, count] == orders[model, 0]:
            return self.names[model]
        return f"{self.names[model]}~{count}"  # no other name has such a sign

    def _orders(self) -> dict[tuple[str, int], tuple[int | None, ...]]:
        """Return for each input, the base among them, its layers."""
        base = next(model for model, name in self.names.items() if name == BASE)
        inputs = dict.fromkeys([(base, 0), *(identity(source) for part in self.slices for source in part.sources)])
        orders: dict[tuple[str, int], tuple[int | None, ...]] = {}
        for each in inputs:
            order: list[int | None] = []
            for part in self.slices:
                here = next((source for source in part.sources if identity(source) == each), None)
                count = (part.stop or 0) - part.start
                order += [None] * count if here is None else range(here.first, here.first + count)
            orders[each] = tuple(order)
        return orders

    def chain(self, at: Slice, source: Source | None) -> tuple[Scope, ...]:
        """Return the scopes that a value is looked up in, first the one that counts most.

        Args:
            at: the slice.
            source: the input it is for; None: a parameter of the whole merge, which one model cannot set.
        """
        own = () if source is None else (source.scope,)
        return (*own, at.scope, *self.scopes)


def inputs_of(part: Slice, row: Row, base: str | None) -> tuple[Source, ...]:
    """Return the sources of a slice that are inputs of the merge: the base is one only where the method says so."""
    return tuple(source for source in part.sources if row.base == "input" or source.model != base)


def identity(source: Source) -> tuple[str, int]:
    """Return what makes two sources of different slices the same input."""
    return source.model, source.count
