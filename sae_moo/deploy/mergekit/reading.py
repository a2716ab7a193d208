"""Reading a mergekit configuration from YAML, checked as far as can be without the models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_moo.deploy.mergekit.document import WHAT, Document, Scope, Slice, Source, identity, inputs_of
from sae_moo.deploy.mergekit.findings import Findings, shown
from sae_moo.deploy.mergekit.others import other_tool
from sae_moo.deploy.mergekit.settings import read_scope
from sae_moo.deploy.mergekit.table import TABLE, Row
from sae_moo.deploy.mergekit.tokens import read_template, read_vocabulary
from sae_moo.errors import InputError, nearest
from sae_moo.files import marked_yaml
from sae_moo.files.marked_yaml import Key, refusal
from sae_moo.recipe import BASE, DTYPES

_TOP = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_NAME = "name"


def read_configurations(path: Path) -> list[Document]:
    """Read the merges of a file: one, or one in each of its YAML documents, as mergekit-multi has it.

    Args:
        path: a YAML file.

    Returns:
        In an order in which every merge comes after those whose ``name`` it takes for a model.

    Raises:
        InputError: listing every fault with file, line, key, what was expected and the nearest valid name; or naming
            the tool whose file it is.
    """
    return parse_all(marked_yaml.text_of(path, WHAT), str(path))


def read_configuration(path: Path) -> Document:
    """Read a file that holds one merge; see `read_configurations`."""
    return parse(marked_yaml.text_of(path, WHAT), str(path))


def parse(text: str, source: str) -> Document:
    """Read one merge from text; see `read_configurations`.

    Args:
        text: YAML.
        source: where it is from, for messages.
    """
    merges = parse_all(text, source)
    if len(merges) != 1:
        raise InputError(f"{source}: expected one {WHAT}, got {len(merges)} YAML documents")
    return merges[0]


def parse_all(text: str, source: str) -> list[Document]:
    """Read the merges of a text; see `read_configurations`."""
    parts = marked_yaml.documents(text)
    found: list[Document] = []
    faults: list[str] = []
    names: dict[str, str] = {}
    for part in parts or [text]:
        raw, lines, doubled = marked_yaml.parse(part, source, _TOP)
        other = other_tool(raw)
        if other is not None:
            raise InputError(f"{source}: {other}")
        findings = Findings(marked_yaml.Places(lines, source), doubled)
        name = raw.get(_NAME)
        if len(parts) > 1 and name is not None:
            if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.-]*", name) or name in names:
                expected = "expected letters, digits, dots and dashes, every name once"
                findings.fault((_NAME,), f"{expected}, got {name!r}")
            names[str(name)] = name
        document = _Reader(findings, named=len(parts) > 1).document(raw)
        faults += findings.faults
        if document is not None:
            found.append(document)
    if faults:
        raise refusal(WHAT, faults)
    if sum(document.name is None for document in found) > 1:
        raise InputError(f"{source}: expected a name for every merge but one")
    return _after_what_they_take(found, source)


def _after_what_they_take(merges: Sequence[Document], source: str) -> list[Document]:
    """Put merges in order: each after those that it takes for models."""
    waiting, done = list(merges), list[Document]()
    while waiting:
        names = {document.name for document in waiting}
        ready = [document for document in waiting if not names & set(document.takes)]
        if not ready:
            raise InputError(f"{source}: the merges {', '.join(map(str, names))} take each other for models")
        done += ready
        waiting = [document for document in waiting if document not in ready]
    return done


@dataclass(slots=True)
class _Reader:
    """Goes through a document once.

    Args:
        findings: gets what is wrong with it.
        named: whether it is one of several, so that its ``name`` means something.
    """

    findings: Findings
    named: bool = False
    row: Row | None = None
    method: str = ""

    def document(self, raw: dict[str, Any]) -> Document | None:
        self.findings.keys((), raw, (*_TOP, *([_NAME] if self.named else [])))
        self._method(raw.get("merge_method"))
        base = self._reference(("base_model",), raw["base_model"]) if raw.get("base_model") is not None else None
        own = read_scope(self.findings, self.method, ("parameters",), raw.get("parameters"))
        given = [key for key in ("models", "slices", "modules") if raw.get(key)]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            self.findings.fault((), f"expected exactly one of models, slices and modules, got {got}")
        scopes: tuple[Scope, ...] = ({}, own)
        where: Key = ()
        body = raw
        if given == ["modules"]:
            where, body, module = self._module(raw["modules"])
            scopes = (module, own)
        slices = self._slices(where, body)
        bases = {each for each in (base, *(base for _, base in slices)) if each is not None}
        if len(bases) > 1:
            self.findings.fault((), f"expected one base_model for all slices, got {', '.join(sorted(bases))}")
        base = next(iter(bases), None)
        whole = [self._completed(part, base, slices=body.get("models") is None) for part, _ in slices]
        self._check_inputs(whole, base, scopes)
        models = list(
            dict.fromkeys([*([base] if base else []), *(source.model for part in whole for source in part.sources)])
        )
        if base is None and models and self.row is not None:
            self.findings.notes.append(
                f"no base_model: {models[0]}, the first model, gives the architecture and the tokenizer"
            )
        dtype = self._dtype(raw)
        names = _named(models)
        vocabulary, tokenizer = read_vocabulary(self.findings, raw, names, base, self._reference)
        template = read_template(self.findings, raw.get("chat_template"))
        if self.findings.faults or self.row is None:
            return None
        return Document(
            places=self.findings.places,
            name=raw.get(_NAME) if self.named else None,
            method=self.method,
            base=base,
            slices=tuple(whole),
            scopes=scopes,
            names=names,
            dtype=dtype,
            vocabulary=vocabulary,
            tokenizer=tokenizer,
            chat_template=template,
            notes=tuple(dict.fromkeys(self.findings.notes)),
        )

    def _method(self, name: Any) -> None:
        if name is None:
            self.findings.fault((), "merge_method: expected this key, it is missing")
        elif not isinstance(name, str) or name not in TABLE:
            near = nearest(str(name), TABLE)
            self.findings.fault(("merge_method",), f"no merge method {name!r}{near}; there are {', '.join(TABLE)}")
        else:
            self.row, self.method = TABLE[name], name

    def _reference(self, key: Key, value: Any) -> str | None:
        """Return a model as text; mergekit also writes it as a mapping."""
        whole, adapter = value, None
        if isinstance(whole, dict):
            self.findings.keys(key, whole, ("model", "lora", "override_architecture"))
            adapter = self._path((*key, "lora"), whole["lora"]) if whole.get("lora") is not None else None
            if whole.get("override_architecture") is not None:
                self.findings.notes.append("override_architecture has no effect: the architecture is the checkpoint's")
            whole = whole.get("model")
        whole = self._path((*key, "model"), whole) if isinstance(whole, dict) else whole
        if not isinstance(whole, str) or not whole:
            self.findings.fault(key, f"expected a folder or a hub id, got {value!r}")
            return None
        model = whole if adapter is None else f"{whole}+{adapter}"
        if not all(model.split("+")) or model.count("+") > 1:
            self.findings.fault(key, f"expected a model, or model+adapter, got {model!r}")
            return None
        return model

    def _path(self, key: Key, value: Any) -> str | None:
        if not isinstance(value, dict):
            return value if isinstance(value, str) else None
        self.findings.keys(key, value, ("path", "revision"))
        path, revision = value.get("path"), value.get("revision")
        return f"{path}@{revision}" if revision is not None else path

    def _module(self, found: Any) -> tuple[Key, dict[str, Any], Scope]:
        if not isinstance(found, dict) or len(found) != 1:
            self.findings.fault(
                ("modules",), "expected a mapping with one module; models of several modules are not supported"
            )
            return (), {}, {}
        name, body = next(iter(found.items()))
        key: Key = ("modules", name)
        if not isinstance(body, dict):
            self.findings.fault(key, f"expected a mapping, got {body!r}")
            return key, {}, {}
        self.findings.keys(key, body, ("models", "slices", "parameters"))
        if bool(body.get("models")) == bool(body.get("slices")):
            self.findings.fault(key, "expected either models or slices")
        return key, body, read_scope(self.findings, self.method, (*key, "parameters"), body.get("parameters"))

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
                self.findings.fault(here, f"expected a mapping with sources, got {entry!r}")
                continue
            self.findings.keys(here, entry, ("sources", "base_model", "parameters", "residual_weight"))
            if entry.get("residual_weight") is not None:
                self.findings.notes.append("residual_weight has no effect, as in mergekit")
            base = self._reference((*here, "base_model"), entry["base_model"]) if entry.get("base_model") else None
            sources = self._sources(
                (*here, "sources"), entry.get("sources"), ("model", "layer_range", "parameters"), ranged=True
            )
            scope = read_scope(self.findings, self.method, (*here, "parameters"), entry.get("parameters"))
            position = (found[-1][0].stop or 0) if found else 0
            stop = position + self._count(sources)
            found.append((Slice(position, stop, tuple(source for source, _ in sources), scope, here), base))
        return found

    def _list(self, key: Key, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            self.findings.fault(key, f"expected a list with at least one entry, got {shown(value)}")
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
                self.findings.fault(here, f"expected a mapping with model, got {entry!r}")
                continue
            self.findings.keys(here, entry, known)
            model = self._reference((*here, "model"), entry.get("model"))
            scope = read_scope(self.findings, self.method, (*here, "parameters"), entry.get("parameters"), of_one=True)
            layers = entry.get("layer_range")
            if ranged and not (
                isinstance(layers, list)
                and len(layers) == 2
                and all(type(number) is int for number in layers)
                and 0 <= layers[0] < layers[1]
            ):
                self.findings.fault((*here, "layer_range"), f"expected [first, after the last], got {layers!r}")
                layers = None
            if model is not None:
                first = layers[0] if layers else 0
                sources.append((Source(model, counts[model], scope, here, first), tuple(layers) if layers else None))
                counts[model] += 1
        for model, count in counts.items():
            if count > 1:
                self.findings.notes.append(f"{model} stands {count} times and is as many inputs; mergekit refuses that")
        return sources

    def _count(self, sources: Sequence[tuple[Source, tuple[int, int] | None]]) -> int:
        """Return how many layers a slice has: as many from each of its sources."""
        counts = [(source, layers[1] - layers[0]) for source, layers in sources if layers is not None]
        for source, count in counts:
            if count != counts[0][1] and source.key is not None:
                self.findings.fault(
                    (*source.key, "layer_range"), "expected as many layers from every source of a slice"
                )
        return counts[0][1] if counts else 1

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
            self.findings.fault(("merge_method",), f"{self.method} needs a base_model")
            return
        for part in slices:
            listed = [source for source in part.sources if source.model == base]
            if row.base != "input" and base is not None and len(listed) != 1 and part.sources:
                self.findings.fault(
                    part.key, f"expected base_model {base} once among the sources, got it {len(listed)} times"
                )
            if row.base != "input" and any(row.parameters[name].each for source in listed for name in source.scope):
                self.findings.notes.append(f"the parameters of {base} have no effect, as in mergekit: it is the base")
            inputs = inputs_of(part, row, base)
            if part.sources and (len(inputs) < row.least or (row.most is not None and len(inputs) > row.most)):
                bound = f"{row.least}" if row.least == row.most else f"at least {row.least}"
                besides = " (base_model counts)" if row.base == "input" and base else ""
                besides = " besides base_model" if row.base != "input" and base else besides
                self.findings.fault(part.key, f"{self.method}: expected {bound} models{besides}, got {len(inputs)}")
            for name, parameter in row.parameters.items():
                if not parameter.required:
                    continue
                for source in inputs if parameter.each else [None]:
                    own = () if source is None else (source.scope,)
                    if not any(name in scope for scope in (*own, part.scope, *scopes)):
                        whose = f" for {source.model}" if source is not None else ""
                        key = part.key if source is None or source.key is None else source.key
                        self.findings.fault(key, f"{self.method}: expected a value of {name}{whose}, there is none")
        first = {identity(source) for source in inputs_of(slices[0], row, base)} if slices else set()
        for part in slices[1:]:
            if not row.absent and {identity(source) for source in inputs_of(part, row, base)} != first:
                self.findings.fault(part.key, f"{self.method}: expected the same models in every slice")

    def _dtype(self, raw: Mapping[str, Any]) -> str | None:
        found: dict[str, str | None] = {}
        for key in ("dtype", "out_dtype"):
            value = raw.get(key)
            name = value.removeprefix("torch.") if isinstance(value, str) else value
            known = (*DTYPES, *(["float64"] if key == "dtype" and raw.get("out_dtype") else []))
            if name is not None and name not in known:
                self.findings.fault((key,), f"expected {', '.join(DTYPES)}, got {value!r}")
            found[key] = name
        if found["dtype"] not in (None, "float32"):
            self.findings.notes.append(
                f"dtype {found['dtype']}: mergekit computes in it; here the arithmetic is float32, rounded once to "
                f"{found['out_dtype'] or found['dtype']}"
            )
        return found["out_dtype"] or found["dtype"]


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
