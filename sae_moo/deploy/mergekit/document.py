"""A mergekit configuration as a value: read from YAML and checked as far as can be without the models."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_moo.deploy.mergekit.table import ELSEWHERE, KNOWN, TABLE, Parameter, Row, Value
from sae_moo.errors import nearest
from sae_moo.files import marked_yaml
from sae_moo.files.marked_yaml import Key, dotted, place, refusal
from sae_moo.recipe import BASE, DTYPES

WHAT = "mergekit configuration"
AUTO = "auto"  # the chat template that most of the models have
_TOP = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip


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
    """

    model: str
    count: int
    scope: Scope
    key: Key | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers with the models they are merged from.

    Args:
        start: first layer.
        stop: layer after the last; None: the model's last.
        sources: the models, the base among them where the file or mergekit's rule has it.
        scope: parameters of the slice.
        key: its place in the file.
    """

    start: int
    stop: int | None
    sources: tuple[Source, ...]
    scope: Scope
    key: Key


@dataclass(frozen=True, slots=True)
class Document:
    """A mergekit configuration.

    Args:
        path: its file, for messages.
        lines: key -> ``FILE:LINE``.
        method: mergekit's name of the method.
        base: the base model as the file has it, None if it has none.
        slices: one for all layers, unless the file has ``slices``.
        scopes: parameters of the module and of the whole, in that order.
        names: model as the file has it -> name of an expert; one of them is ``base``.
        dtype: of the output; None: as the base is stored.
        tokenizer: name of the expert whose tokenizer the output gets; None: not said, so the base's.
        chat_template: a Jinja template, ``auto`` (the one that most of the models have), or None.
        notes: what the user should know.
    """

    path: str
    lines: Mapping[Key, str]
    method: str
    base: str | None
    slices: tuple[Slice, ...]
    scopes: tuple[Scope, ...]
    names: Mapping[str, str]
    dtype: str | None
    tokenizer: str | None
    chat_template: str | None
    notes: tuple[str, ...]

    @property
    def row(self) -> Row:
        """The method's row of the table."""
        return TABLE[self.method]

    @property
    def sources(self) -> dict[str, str]:
        """Name of an expert -> where it is, the base first; of ``base+adapter`` the adapter."""
        found = {name: model.rpartition("+")[2] for model, name in self.names.items()}
        return {BASE: found.pop(BASE), **found}

    def chain(self, at: Slice, source: Source | None) -> tuple[Scope, ...]:
        """Return the scopes that a value is looked up in, first the one that counts most.

        Args:
            at: the slice.
            source: the input it is for; None: a parameter of the whole merge, which one model cannot set.
        """
        own = () if source is None else (source.scope,)
        return (*own, at.scope, *self.scopes)


def read_configuration(path: Path) -> Document:
    """Read a mergekit configuration.

    Args:
        path: a YAML file.

    Raises:
        InputError: listing every fault with file, line, key, what was expected and the nearest valid name.
    """
    return _checked(str(path), *marked_yaml.read(path, WHAT, _TOP))


def parse(text: str, source: str) -> Document:
    """Read a mergekit configuration from text; see `read`.

    Args:
        text: YAML.
        source: where it is from, for messages.
    """
    return _checked(source, *marked_yaml.parse(text, source, _TOP))


def _checked(source: str, raw: dict[str, Any], lines: Mapping[Key, str], faults: list[str]) -> Document:
    reader = _Reader(source, lines, faults)
    document = reader.document(raw)
    if reader.faults or document is None:
        raise refusal(WHAT, reader.faults)
    return document


@dataclass(slots=True)
class _Reader:
    """Goes through a file once and collects what is wrong with it."""

    path: str
    lines: Mapping[Key, str]
    faults: list[str]
    notes: list[str] = field(default_factory=list)
    row: Row | None = None
    method: str = ""

    def fault(self, key: Key, text: str) -> None:
        shown = f"{dotted(key)}: " if key else ""
        self.faults.append(f"{place(key, self.lines, self.path)}: {shown}{text}")

    def document(self, raw: dict[str, Any]) -> Document | None:
        self._keys((), raw, _TOP)
        self._method(raw.get("merge_method"))
        base = self._reference(("base_model",), raw["base_model"]) if raw.get("base_model") is not None else None
        own = self._scope(("parameters",), raw.get("parameters"))
        given = [key for key in ("models", "slices", "modules") if raw.get(key)]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            self.fault((), f"expected exactly one of models, slices and modules, got {got}")
        scopes: tuple[Scope, ...] = ({}, own)
        where: Key = ()
        body = raw
        if given == ["modules"]:
            where, body, module = self._module(raw["modules"])
            scopes = (module, own)
        slices = self._slices(where, body)
        bases = {each for each in (base, *(base for _, base in slices)) if each is not None}
        if len(bases) > 1:
            self.fault((), f"expected one base_model for all slices, got {', '.join(sorted(bases))}")
        base = next(iter(bases), None)
        whole = [self._completed(part, base, slices=body.get("models") is None) for part, _ in slices]
        self._check_inputs(whole, base, scopes)
        models = list(
            dict.fromkeys([*([base] if base else []), *(source.model for part in whole for source in part.sources)])
        )
        if base is None and models and self.row is not None:
            self.notes.append(f"no base_model: {models[0]}, the first model, gives the architecture and the tokenizer")
        self._check_adapters(whole, base)
        dtype = self._dtype(raw)
        names = _named(models)
        tokenizer = self._tokenizer(raw, names)
        template = self._template(raw.get("chat_template"))
        if self.faults or self.row is None:
            return None
        return Document(
            self.path, self.lines, self.method, base, tuple(whole), scopes, names, dtype, tokenizer, template,
            tuple(dict.fromkeys(self.notes)),
        )  # fmt: skip

    def _keys(self, key: Key, found: Mapping[Any, Any], known: Sequence[str]) -> None:
        for name in found:
            if name not in known:
                self.fault((*key, name), f"no such key{nearest(str(name), known)}; expected one of {', '.join(known)}")

    def _method(self, name: Any) -> None:
        if name is None:
            self.fault((), "merge_method: expected this key, it is missing")
        elif name in ELSEWHERE:
            self.fault(("merge_method",), f"mergekit's {name} is not here; there are {', '.join(TABLE)}")
        elif not isinstance(name, str) or name not in TABLE:
            near = nearest(str(name), TABLE)
            self.fault(("merge_method",), f"no merge method {name!r}{near}; there are {', '.join(TABLE)}")
        else:
            self.row, self.method = TABLE[name], name

    def _reference(self, key: Key, value: Any) -> str | None:
        """Return a model as text; mergekit also writes it as a mapping."""
        whole, adapter = value, None
        if isinstance(whole, dict):
            self._keys(key, whole, ("model", "lora", "override_architecture"))
            adapter = self._path((*key, "lora"), whole["lora"]) if whole.get("lora") is not None else None
            if whole.get("override_architecture") is not None:
                self.fault((*key, "override_architecture"), "cannot be followed: the architecture is the checkpoint's")
            whole = whole.get("model")
        whole = self._path((*key, "model"), whole) if isinstance(whole, dict) else whole
        if not isinstance(whole, str) or not whole.strip("+"):
            self.fault(key, f"expected a folder or a hub id, got {value!r}")
            return None
        return whole if adapter is None else f"{whole}+{adapter}"

    def _path(self, key: Key, value: Any) -> str | None:
        if not isinstance(value, dict):
            return value if isinstance(value, str) else None
        self._keys(key, value, ("path", "revision"))
        path, revision = value.get("path"), value.get("revision")
        return f"{path}@{revision}" if revision is not None else path

    def _check_adapters(self, slices: Sequence[Slice], base: str | None) -> None:
        """Adapters are experts over the base, and over nothing else."""
        placed = {source.model: (*source.key, "model") for part in slices for source in part.sources if source.key}
        for model, key in {**placed, **({base: ("base_model",)} if base else {})}.items():
            under, plus, adapter = model.partition("+")
            if plus and (under != base or not adapter or "+" in adapter):
                whose = base or "and there is none"
                self.fault(key, f"expected an adapter only on base_model ({whose}), and one alone, got {model}")

    def _module(self, found: Any) -> tuple[Key, dict[str, Any], Scope]:
        if not isinstance(found, dict) or len(found) != 1:
            self.fault(("modules",), "expected a mapping with one module; models of several modules are not supported")
            return (), {}, {}
        name, body = next(iter(found.items()))
        key: Key = ("modules", name)
        if not isinstance(body, dict):
            self.fault(key, f"expected a mapping, got {body!r}")
            return key, {}, {}
        self._keys(key, body, ("models", "slices", "parameters"))
        if bool(body.get("models")) == bool(body.get("slices")):
            self.fault(key, "expected either models or slices")
        return key, body, self._scope((*key, "parameters"), body.get("parameters"))

    def _slices(self, where: Key, body: Mapping[str, Any]) -> list[tuple[Slice, str | None]]:
        found: list[tuple[Slice, str | None]] = []
        if body.get("models"):
            key: Key = (*where, "models")
            sources = self._sources(key, body["models"], ("model", "parameters"))
            return [(Slice(0, None, tuple(source for source, _ in sources), {}, key), None)]
        key = (*where, "slices")
        for i, entry in enumerate(self._list(key, body["slices"]) if body.get("slices") else ()):
            here: Key = (*key, i)
            if not isinstance(entry, dict):
                self.fault(here, f"expected a mapping with sources, got {entry!r}")
                continue
            self._keys(here, entry, ("sources", "base_model", "parameters", "residual_weight"))
            if entry.get("residual_weight") is not None:
                self.notes.append("residual_weight has no effect, as in mergekit")
            base = self._reference((*here, "base_model"), entry["base_model"]) if entry.get("base_model") else None
            sources = self._sources(
                (*here, "sources"), entry.get("sources"), ("model", "layer_range", "parameters"), ranged=True
            )
            scope = self._scope((*here, "parameters"), entry.get("parameters"))
            position = (found[-1][0].stop or 0) if found else 0
            stop = self._range(sources, position)
            found.append((Slice(position, stop, tuple(source for source, _ in sources), scope, here), base))
        return found

    def _list(self, key: Key, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            self.fault(key, f"expected a list with at least one entry, got {_shown(value)}")
            return []
        return value

    def _sources(
        self, key: Key, found: Any, known: Sequence[str], ranged: bool = False
    ) -> list[tuple[Source, tuple[int, int] | None]]:
        sources: list[tuple[Source, tuple[int, int] | None]] = []
        counts = Counter[str]()
        for i, entry in enumerate(self._list(key, found)):
            here: Key = (*key, i)
            if not isinstance(entry, dict):
                self.fault(here, f"expected a mapping with model, got {entry!r}")
                continue
            self._keys(here, entry, known)
            model = self._reference((*here, "model"), entry.get("model"))
            scope = self._scope((*here, "parameters"), entry.get("parameters"), of_one=True)
            layers = entry.get("layer_range")
            if ranged and not (
                isinstance(layers, list)
                and len(layers) == 2
                and all(type(number) is int for number in layers)
                and 0 <= layers[0] < layers[1]
            ):
                self.fault((*here, "layer_range"), f"expected [first, after the last], got {layers!r}")
                layers = None
            if model is not None:
                sources.append((Source(model, counts[model], scope, here), tuple(layers) if layers else None))
                counts[model] += 1
        for model, count in counts.items():
            if count > 1:
                self.notes.append(f"{model} stands {count} times and is as many inputs; mergekit refuses that")
        return sources

    def _range(self, sources: Sequence[tuple[Source, tuple[int, int] | None]], position: int) -> int:
        """Return the layer after a slice, whose sources must all be in their own places."""
        stops = []
        for source, layers in sources:
            if layers is None:
                continue
            assert source.key is not None
            if layers[0] != position:
                what = "repeat or move" if layers[0] < position else "drop or move"
                self.fault(
                    (*source.key, "layer_range"),
                    f"would change the architecture: layers {layers[0]} to {layers[1] - 1} of {source.model} would "
                    f"become layers {position} and on; slices that {what} layers are not supported",
                )
            stops.append(layers[1])
            if layers[1] - layers[0] != stops[0] - position and layers[0] == position:
                self.fault((*source.key, "layer_range"), "expected as many layers from every source of a slice")
        return stops[0] if stops else position + 1

    def _completed(self, part: Slice, base: str | None, slices: bool) -> Slice:
        """Add the base to ``models`` that do not list it, as mergekit does."""
        if base is None or slices or any(source.model == base for source in part.sources):
            return part
        return Slice(part.start, part.stop, (*part.sources, Source(base, 0, {}, None)), part.scope, part.key)

    def _check_inputs(self, slices: Sequence[Slice], base: str | None, scopes: Sequence[Scope]) -> None:
        row = self.row
        if row is None:
            return
        if row.base in ("required", "first") and base is None:
            self.fault(("merge_method",), f"{self.method} needs a base_model")
            return
        for part in slices:
            listed = [source for source in part.sources if source.model == base]
            if row.base != "input" and base is not None and len(listed) != 1 and part.sources:
                self.fault(part.key, f"expected base_model {base} once among the sources, got it {len(listed)} times")
            if row.base != "input" and any(row.parameters[name].each for source in listed for name in source.scope):
                self.notes.append(f"the parameters of {base} have no effect, as in mergekit: it is the base")
            inputs = inputs_of(part, row, base)
            if part.sources and (len(inputs) < row.least or (row.most is not None and len(inputs) > row.most)):
                bound = f"{row.least}" if row.least == row.most else f"at least {row.least}"
                besides = " (base_model counts)" if row.base == "input" and base else ""
                besides = " besides base_model" if row.base != "input" and base else besides
                self.fault(part.key, f"{self.method}: expected {bound} models{besides}, got {len(inputs)}")
            for name, parameter in row.parameters.items():
                if not parameter.required:
                    continue
                for source in inputs if parameter.each else [None]:
                    own = () if source is None else (source.scope,)
                    if not any(name in scope for scope in (*own, part.scope, *scopes)):
                        whose = f" for {source.model}" if source is not None else ""
                        key = part.key if source is None or source.key is None else source.key
                        self.fault(key, f"{self.method}: expected a value of {name}{whose}, there is none")
        first = {identity(source) for source in inputs_of(slices[0], row, base)} if slices else set()
        for part in slices[1:]:
            if not row.absent and {identity(source) for source in inputs_of(part, row, base)} != first:
                self.fault(part.key, f"{self.method}: expected the same models in every slice")

    def _scope(self, key: Key, found: Any, of_one: bool = False) -> Scope:
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.fault(key, f"expected a mapping of parameters, got {found!r}")
            return {}
        scope: dict[str, Setting] = {}
        for name, value in found.items():
            here: Key = (*key, name)
            if self.row is None:
                continue
            parameter = self.row.parameters.get(name)
            if parameter is None and name in KNOWN:
                self.notes.append(f"{name} has no effect on {self.method}, as in mergekit")
            elif parameter is None:
                known = ", ".join(self.row.parameters) or "none"
                near = nearest(str(name), self.row.parameters)
                self.fault(here, f"no parameter of {self.method}{near}; there are: {known}")
            elif of_one and not parameter.each:
                self.notes.append(
                    f"{dotted(here)} has no effect, as in mergekit: {name} is for the slice or the whole, not one model"
                )
            else:
                setting = self._setting(here, value, parameter)
                if setting:
                    scope[name] = setting
                if name == "int8_mask":
                    self.notes.append("int8_mask changes mergekit's use of memory, no result; it has no effect here")
        return scope

    def _setting(self, key: Key, value: Any, parameter: Parameter) -> Setting:
        entries = value if isinstance(value, list) else [value]
        if not entries:
            self.fault(key, "expected a value, got an empty list")
            return ()
        if not any(isinstance(entry, dict) for entry in entries):
            return (Filtered(None, self._values(key, entries, parameter)),)
        conditions = []
        for i, entry in enumerate(entries):
            here: Key = (*key, i) if isinstance(value, list) else key
            if not isinstance(entry, dict) or "value" not in entry:
                self.fault(here, f"expected {{filter: TEXT, value: NUMBER}}, got {_shown(entry)}")
                continue
            self._keys(here, entry, ("filter", "value"))
            part = entry.get("filter")
            if part is not None and not isinstance(part, str):
                self.fault((*here, "filter"), f"expected part of a tensor's name, got {part!r}")
            inner = entry["value"]
            inner = inner if isinstance(inner, list) else [inner]
            if not inner:
                self.fault((*here, "value"), "expected a value, got an empty list")
            values = self._values((*here, "value"), inner, parameter)
            conditions.append(Filtered(None if part == "*" else part, values))
        return tuple(conditions)

    def _values(self, key: Key, entries: Sequence[Any], parameter: Parameter) -> tuple[Value, ...]:
        found = []
        for entry in entries:
            value = _value(entry, parameter.kind)
            if value is None:
                kind = {"number": "a number", "whole": "a whole number", "flag": "true or false"}[parameter.kind]
                self.fault(key, f"expected {kind}, got {_shown(entry)}")
            elif parameter.only is not None and value != parameter.only:
                self.fault(key, f"cannot be followed: this is here only as {_written(parameter.only)}, got {entry}")
            elif parameter.share and not 0 <= value <= 1:
                self.fault(key, f"expected a share in [0, 1], got {entry}")
            else:
                found.append(value)
        return tuple(found)

    def _dtype(self, raw: Mapping[str, Any]) -> str | None:
        found: dict[str, str | None] = {}
        for key in ("dtype", "out_dtype"):
            value = raw.get(key)
            name = value.removeprefix("torch.") if isinstance(value, str) else value
            known = (*DTYPES, *(["float64"] if key == "dtype" and raw.get("out_dtype") else []))
            if name is not None and name not in known:
                self.fault((key,), f"expected {', '.join(DTYPES)}, got {value!r}")
            found[key] = name
        if found["dtype"] not in (None, "float32"):
            self.notes.append(
                f"dtype {found['dtype']}: mergekit computes in it; here the arithmetic is float32, rounded once to "
                f"{found['out_dtype'] or found['dtype']}"
            )
        return found["out_dtype"] or found["dtype"]

    def _tokenizer(self, raw: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
        key: Key = ("tokenizer_source",)
        source = raw.get("tokenizer_source")
        section = raw.get("tokenizer")
        if section is not None:
            if source is not None:
                self.fault(("tokenizer",), "expected either tokenizer or tokenizer_source, got both")
            key = ("tokenizer", "source")
            if not isinstance(section, dict):
                self.fault(("tokenizer",), f"expected a mapping with source, got {section!r}")
                return None
            self._keys(("tokenizer",), section, ("source", "tokens", "pad_to_multiple_of"))
            for name in ("tokens", "pad_to_multiple_of"):
                if section.get(name) is not None:
                    self.fault(("tokenizer", name), "would change the embeddings' rows, which is not supported")
            source = section.get("source", "union")
        if source is None:
            return None
        if source == "union":
            self.fault(key, "a union of vocabularies would change the embeddings' rows, which is not supported")
            return None
        if source == "base":
            return BASE
        model = self._reference(key, source)
        if model is not None and model not in names:
            self.fault(key, f"expected base or one of the models, got {model}{nearest(model, names)}")
        return names.get(model) if model is not None else None

    def _template(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or (value != AUTO and "{" not in value):
            expected = f"expected a Jinja template or {AUTO} (the templates that mergekit names are not here)"
            self.fault(("chat_template",), f"{expected}, got {value!r}")
            return None
        return value


def inputs_of(part: Slice, row: Row, base: str | None) -> tuple[Source, ...]:
    """Return the sources of a slice that are inputs of the merge: the base is one only where the method says so."""
    return tuple(source for source in part.sources if row.base == "input" or source.model != base)


def identity(source: Source) -> tuple[str, int]:
    """Return what makes two sources of different slices the same input."""
    return source.model, source.count


def _named(models: Iterable[str]) -> dict[str, str]:
    """Name experts after the last part of their places; the first is the base."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for i, model in enumerate(models):
        last = re.split(r"[/+]", model.rstrip("/"))[-1].removeprefix("zoo:").partition("@")[0]
        stem = re.sub(r"[^\w.-]+", "_", last).strip("_.") or "model"
        name, number = (BASE if i == 0 else stem), 1
        while name in taken or (i > 0 and name == BASE):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names[model] = name
    return names


def _value(entry: Any, kind: str) -> Value | None:
    """Return a number or truth value, None if it is none; YAML reads 1e-5 as text."""
    if kind == "flag":
        return bool(entry) if entry in (0, 1) and not isinstance(entry, (str, float)) else None
    if isinstance(entry, bool) or not isinstance(entry, (int, float, str)):
        return None
    try:
        number = float(entry)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and (kind == "number" or number == int(number)) else None


def _shown(value: Any) -> str:
    return type(value).__name__ if isinstance(value, (dict, list)) else repr(value)


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
