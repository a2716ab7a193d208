"""Recipes: what a candidate model is made of, as an immutable expression tree.

Leaves name experts, inner nodes merge, prune, repair or round. A recipe holds no weights: `materialize` computes them,
`digest` identifies them. Every new question about recipes is a function over the nodes (`walk`, `mixing.py`),
not a method on each of them. Lineages may be thousands of nodes deep, so nothing here recurses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from sae_moo.errors import InputError
from sae_moo.recipe.catalogue import SEPARATOR, Guest, Row, canonical, check_guests
from sae_moo.recipe.criteria import CRITERIA, USUAL
from sae_moo.recipe.methods import METHODS
from sae_moo.recipe.rows import Param, Rows, Weights, number, numbers
from sae_moo.recipe.scopes import STRUCTURED, check_scope, checked_counts, checked_units

SCHEMA = 1
BASE = "base"
DTYPES = ("float32", "bfloat16", "float16")
STORED = "stored"
"""What a `Cast` rounds to where checkpoints mix dtypes: every tensor to the dtype that the base stores it in."""


class HasFingerprints(Protocol):
    """Anything that knows the content fingerprints of experts; an `ExpertPool` does."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Expert name -> hexadecimal digest of its weights."""


class Recipe:
    """Base of the nodes. Equality and hash are those of the canonical form, computed once at construction.

    Attributes:
        key: hexadecimal SHA-256 over the node and its inputs' keys. Two recipes with one key are one expression;
            `digest` binds that expression to the weights of the experts it names.
    """

    __slots__ = ()
    key: str

    def to_json(self) -> str:
        """Return the canonical JSON: a table of nodes, inputs before users, shared subtrees once."""
        return dumps(encode(self))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            InputError: if the text is not JSON, has another schema version, or holds a malformed node.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # not JSON, or integers longer than Python reads
            raise InputError(f"expected a recipe as JSON, got text that is not JSON: {error}") from error
        return decode(document)

    def digest(self, pool: HasFingerprints) -> str:
        """Return the identity of the weights this recipe stands for; see `digest`."""
        return digest(self, pool.fingerprints)

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __copy__(self) -> Recipe:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Recipe:
        return self  # immutable; a deep copy of a long lineage would only cost memory

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Recipe.from_json, (self.to_json(),)  # pickling node by node would recurse through the lineage

    def __repr__(self) -> str:
        return _describe(self, depth=3)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Expert(Recipe):
    """The weights of one checkpoint, as they are.

    Args:
        name: the expert's name in the pool; the base model is the expert named ``base``.
    """

    kind: ClassVar[str] = "expert"
    name: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"Expert: expected a non-empty name, got {self.name!r}")
        _seal(self)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Expert, (self.name,)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Merge(Recipe):
    """A merge of several inputs by one of `methods.METHODS`.

    Args:
        method: name of a merge method, e.g. ``linear`` or ``task_arithmetic``; of an installed package's,
            ``package/name``.
        inputs: one or more recipes, in the order of the weights.
        weights: one finite number per input, or one such row per parameter group (groups in the pool's order) or per
            tensor (tensors in the pool's order).
        params: further settings of the method, e.g. ``{"scale": 0.8}``; kept sorted by name. A number may differ by
            input (one per input), or by group or tensor too (rows of one number, or of one per input).
    """

    kind: ClassVar[str] = "merge"
    method: str
    inputs: tuple[Recipe, ...]
    weights: Weights
    params: tuple[tuple[str, Param], ...] = ()
    key: str = field(init=False)

    def __post_init__(self) -> None:
        inputs = tuple(self.inputs)
        if not isinstance(self.method, str) or not self.method:
            raise InputError(f"Merge: expected the name of a method, got {self.method!r}")
        if not inputs or not all(isinstance(node, Recipe) for node in inputs):
            raise InputError(f"Merge {self.method}: expected one or more recipes as inputs, got {self.inputs!r}")
        weights = numbers(self.weights, f"Merge {self.method}: weights")
        for row in Rows.of(weights).rows:
            if len(row) != len(inputs):
                raise InputError(
                    f"Merge {self.method}: expected {len(inputs)} weights, one per input (or rows of as many, one row "
                    f"per group), got {row!r}"
                )
        params = dict(self.params)
        for name, value in params.items():
            where = f"Merge {self.method}: {name}"
            if isinstance(value, (list, tuple)):
                params[name] = _setting_rows(value, len(inputs), where)
            elif not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
                raise InputError(f"Merge {self.method}: expected a number, truth value or text for {name!r}: {value!r}")
            elif isinstance(value, float):
                params[name] = number(value, where)
        object.__setattr__(self, "method", canonical(self.method))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "params", tuple(sorted(params.items())))
        _seal(self)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Prune(Recipe):
    """Set the least important prunable weights to exact zeros.

    Args:
        input: the recipe to prune.
        sparsity: fraction of zeros asked for, in [0, 1): one number, one per parameter group, or, where tensors do not
            compete with each other (``tensor``, ``row``, ``N:M``), one per tensor, in the pool's order. With a scope
            ``N:M`` it is the pattern's 1 - N/M (a group or tensor may ask 0.0 and is left alone). With ``neurons``,
            ``heads`` and ``moe-experts`` it is the fraction of a block's units, with ``blocks`` that of all blocks, one
            number; in each block one unit stays at least, and one block of all.
        criterion: name of one of `criteria.CRITERIA`, ``magnitude`` or ``wanda``; of an installed package's,
            ``package/name``.
        scope: what competes with what: ``tensor``, ``group`` or ``global`` (all prunable weights); ``row``, the inputs
            of one output, the same number in each; ``N:M``, every M consecutive weights of a row, of which N stay;
            ``neurons``, whole neurons of a block's MLP; ``heads``, whole key/value groups of its attention heads;
            ``moe-experts``, whole experts of a mixture; ``blocks``, whole transformer blocks, which are then the
            identity on the residual stream.
        counts: exact number of zeros per prunable tensor in the pool's order, or None. Group and global scopes are
            resolved to counts once (`resolve.resolve`), so that replaying a lineage takes one pass.
        calibration: digest of the activation norms that ``wanda`` weighs by (`calibration.calibrate`), else None.
        units: indices of the units removed, ascending, a row per block in the pool's order, or None: what structured
            scopes are resolved to. With ``blocks`` a block is unit 0 of its row: ``(0,)`` removes it, ``()`` does not.
            In JSON a row is a hexadecimal number whose bit i stands for unit i.
        rescale: multiply what is left of every tensor so that it keeps the L2 norm it had. Not with structured scopes:
            what is left of a block would be scaled once for each of its matrices.
        submodels: sub-models whose blocks are pruned beside the text model's, by name, sorted; the pool was opened with
            the same (`ExpertPool.open`).
    """

    kind: ClassVar[str] = "prune"
    input: Recipe
    sparsity: float | tuple[float, ...]
    criterion: str = USUAL
    scope: str = "tensor"
    counts: tuple[int, ...] | None = None
    calibration: str | None = None
    units: tuple[tuple[int, ...], ...] | None = None
    rescale: bool = False
    submodels: tuple[str, ...] = ()
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.input, Recipe):
            raise InputError(f"Prune: expected a recipe as input, got {self.input!r}")
        single = isinstance(self.sparsity, str) or not isinstance(self.sparsity, Sequence)
        if not single:
            asked = numbers(self.sparsity, "Prune: sparsity")
            if not asked or any(isinstance(value, tuple) for value in asked):
                raise InputError(f"Prune: expected one sparsity, or one per group or tensor, got {self.sparsity!r}")
        else:
            asked = (number(self.sparsity, "Prune: sparsity"),)
        for value in asked:
            if not isinstance(value, float) or not 0.0 <= value < 1.0:
                raise InputError(f"Prune: expected a sparsity in [0, 1), got {value!r}")
        if not isinstance(self.criterion, str) or not self.criterion:
            raise InputError(f"Prune: expected the name of a criterion, got {self.criterion!r}")
        object.__setattr__(self, "criterion", canonical(self.criterion))
        object.__setattr__(self, "sparsity", asked[0] if single else asked)
        check_scope(self.scope, asked, single)
        if self.counts is not None:
            object.__setattr__(self, "counts", checked_counts(self.counts, self.scope))
        if self.calibration is not None:
            _check_calibration("Prune", self.calibration)
        if self.units is not None:
            object.__setattr__(self, "units", checked_units(self.units, self.scope))
        if type(self.rescale) is not bool:
            raise InputError(f"Prune: expected true or false as rescale, got {self.rescale!r}")
        if self.rescale and self.scope in STRUCTURED:
            raise InputError(f"Prune: scope {self.scope!r} cannot be rescaled; tensor, group, global, row and N:M can")
        if isinstance(self.submodels, str) or not all(isinstance(name, str) and name for name in self.submodels):
            raise InputError(f"Prune: expected names of sub-models, got {self.submodels!r}")
        object.__setattr__(self, "submodels", tuple(sorted(set(self.submodels))))
        if self.submodels and self.scope in STRUCTURED:
            raise InputError(f"Prune: scope {self.scope!r} prunes the text model's blocks, no sub-models")
        _seal(self)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Cast(Recipe):
    """Round to a dtype, explicitly. Every candidate ends in one: what a child inherits is what was evaluated.

    Args:
        input: the recipe to round.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for all tensors; or ``stored``, each tensor's own, as the base
            stores it: a bfloat16 model whose router biases are float32 keeps them so.
    """

    kind: ClassVar[str] = "cast"
    input: Recipe
    dtype: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.input, Recipe):
            raise InputError(f"Cast: expected a recipe as input, got {self.input!r}")
        if self.dtype not in (*DTYPES, STORED):
            raise InputError(f"Cast: expected a dtype among {', '.join((*DTYPES, STORED))}, got {self.dtype!r}")
        _seal(self)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Repair(Recipe):
    """Move what a pruning leaves of every weight so that each block computes what it did; the zeros are as many.

    It stands directly under the outermost cast of a recipe and costs forward passes (`materialization.repair`).

    Args:
        input: a pruning, or a chain of them; what the innermost one prunes is what is approached.
        calibration: digest of the token sequences that are read (`calibration_texts`).
        damping: what is added to the second moments of a layer's inputs, in units of their mean, in (0, 1].
    """

    kind: ClassVar[str] = "repair"
    input: Recipe
    calibration: str
    damping: float = 0.01
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.input, Prune):
            raise InputError(f"Repair: expected a pruning as input, got {self.input!r}")
        _check_calibration("Repair", self.calibration)
        damping = number(self.damping, "Repair: damping")
        if not 0.0 < damping <= 1.0:
            raise InputError(f"Repair: expected a damping in (0, 1], got {damping!r}")
        object.__setattr__(self, "damping", damping)
        _seal(self)


def children(node: Recipe) -> tuple[Recipe, ...]:
    """Return the inputs of a node, in order; an expert has none."""
    if isinstance(node, Expert):
        return ()
    return node.inputs if isinstance(node, Merge) else (node.input,)  # type: ignore[attr-defined]  # all others have one


def walk(recipe: Recipe, stop: Collection[Recipe] = ()) -> Iterator[Recipe]:
    """Yield every different node once, inputs before their users, without recursion.

    Args:
        recipe: the root; it comes last.
        stop: nodes that are yielded but whose inputs are not visited.
    """
    done: set[str] = set()
    stack: list[tuple[Recipe, bool]] = [(recipe, False)]
    while stack:
        node, expanded = stack.pop()
        if node.key in done:
            continue
        below = () if expanded or node in stop else children(node)
        if not below:
            done.add(node.key)
            yield node
            continue
        stack.append((node, True))
        stack.extend([(child, False) for child in reversed(below) if child.key not in done])


def experts_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the experts a recipe reads, sorted."""
    return tuple(sorted({node.name for node in walk(recipe) if isinstance(node, Expert)}))


def guests_of(recipe: Recipe, stop: Collection[Recipe] = ()) -> dict[str, Guest]:
    """Return the packages whose methods and criteria a recipe uses, by the rows' names, sorted.

    Args:
        recipe: any recipe.
        stop: nodes that are not looked at, nor what they are made of.

    Raises:
        InputError: if one is not installed.
    """
    return _guests(node for node in walk(recipe, stop=stop) if node not in stop)


def _guests(nodes: Iterable[Recipe]) -> dict[str, Guest]:
    guests: dict[str, Guest] = {}
    for node in nodes:
        row: Row | None = None
        if isinstance(node, Merge) and SEPARATOR in node.method:
            row = METHODS.find(node.method)
        elif isinstance(node, Prune) and SEPARATOR in node.criterion:
            row = CRITERIA.find(node.criterion)
        if row is not None and row.guest is not None:
            guests[row.name] = row.guest
    return dict(sorted(guests.items()))


def digest(recipe: Recipe, fingerprints: Mapping[str, str]) -> str:
    """Return the identity of the weights a recipe stands for: equal digests are equal weights.

    Packages whose methods and criteria it uses are bound in with their versions.

    Args:
        recipe: any recipe.
        fingerprints: expert name -> content fingerprint. The base is bound in always: methods on task vectors read it
            without naming it.

    Returns:
        64 hexadecimal digits, the same on every machine and in every process.

    Raises:
        InputError: if the recipe names an expert without a fingerprint, or uses a package that is not installed.
    """
    nodes = tuple(walk(recipe))
    names = sorted({*(node.name for node in nodes if isinstance(node, Expert)), *({BASE} & set(fingerprints))})
    missing = [name for name in names if name not in fingerprints]
    if missing:
        known = ", ".join(sorted(fingerprints))
        raise InputError(f"the recipe names {', '.join(map(repr, missing))}, but the experts at hand are: {known}")
    bound: list[Any] = [SCHEMA, recipe.key, [[name, fingerprints[name]] for name in names]]
    guests = _guests(nodes)
    if guests:
        bound.append([[name, str(guest)] for name, guest in guests.items()])
    return hashlib.sha256(dumps(bound).encode()).hexdigest()


def encode(recipe: Recipe, known: Mapping[Recipe, str] | None = None) -> dict[str, Any]:
    """Return the canonical document of a recipe.

    Args:
        recipe: any recipe.
        known: recipes stored elsewhere -> the text that refers to them; they are written as references, so that the
            document of a child does not grow with its lineage.

    Returns:
        ``{"schema": 1, "nodes": [...]}``; the last node is the root, inputs are indices of earlier nodes. Where methods
        or criteria of installed packages are used, these and their versions are ``"guests"``.
    """
    known = {} if known is None else known
    index: dict[str, int] = {}
    nodes: list[dict[str, Any]] = []
    own: list[Recipe] = []
    for node in walk(recipe, stop=known):
        index[node.key] = len(nodes)
        if node in known:
            nodes.append({"node": "ref", "digest": known[node]})
        else:
            own.append(node)
            nodes.append(_own(node) | {"inputs": [index[child.key] for child in children(node)]})
    for written in nodes:
        if not written.get("inputs", True):
            del written["inputs"]
    guests = {name: str(guest) for name, guest in _guests(own).items()}
    return {"schema": SCHEMA, "nodes": nodes} | ({"guests": guests} if guests else {})


def decode(document: object, known: Mapping[str, Recipe] | None = None) -> Recipe:
    """Read what `encode` wrote.

    Args:
        document: the parsed document.
        known: text of a reference -> the recipe it refers to.

    Raises:
        InputError: naming the node and what is wrong with it.
        OtherGuest: if it was written with a package that is not installed here, or with another version of it.
    """
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), list) or not document["nodes"]:
        raise InputError('expected a recipe: an object with "schema" and a non-empty list "nodes"')
    if document.get("schema") != SCHEMA:
        raise InputError(f"expected recipe schema {SCHEMA}, got {document.get('schema')!r}")
    check_guests(document.get("guests", {}))
    built: list[Recipe] = []
    for position, entry in enumerate(document["nodes"]):
        try:
            built.append(_read(entry, built, {} if known is None else known))
        except (InputError, KeyError, TypeError, IndexError, ValueError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"recipe node {position}: {reason}") from error
    return built[-1]


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)


def dumps(document: object) -> str:
    """Write JSON the one canonical way: sorted keys, no blanks, ASCII, no NaN."""
    return _CANONICAL.encode(document)


_FIELDS = {
    "expert": {"name"},
    "merge": {"method", "inputs", "weights", "params"},
    "prune": {"inputs", "sparsity", "criterion", "scope", "counts", "calibration", "units", "rescale", "submodels"},
    "repair": {"inputs", "calibration", "damping"},
    "cast": {"inputs", "dtype"},
    "ref": {"digest"},
}


def _read(entry: Any, built: Sequence[Recipe], known: Mapping[str, Recipe]) -> Recipe:
    if not isinstance(entry, dict):
        raise InputError(f"expected an object, got {entry!r}")
    kind = entry["node"]
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InputError(f"expected a node among {', '.join(_FIELDS)}, got {kind!r}")
    extra = set(entry) - _FIELDS[kind] - {"node"}
    if extra:
        raise InputError(f"unknown fields for {kind}: {', '.join(sorted(extra))}")
    for name in ("inputs", "counts", "units", "submodels"):
        if entry.get(name) is not None and not isinstance(entry[name], (list, tuple)):
            raise InputError(f"expected a list as {name}, got {entry[name]!r}")
    inputs = entry.get("inputs") or []
    if any(type(i) is not int or not 0 <= i < len(built) for i in inputs):
        raise InputError(f"expected inputs among the {len(built)} nodes before it, got {inputs!r}")
    if kind in ("prune", "repair", "cast") and len(inputs) != 1:
        raise InputError(f"expected one input, got {len(inputs)}")
    match kind:
        case "expert":
            return Expert(entry["name"])
        case "merge":
            given = entry.get("params", {})
            if not isinstance(given, dict):
                raise InputError(f"expected an object as params, got {given!r}")
            params = tuple(given.items())
            return Merge(entry["method"], tuple(built[i] for i in inputs), entry["weights"], params)
        case "prune":
            counts = entry.get("counts")
            counts = None if counts is None else tuple(counts)
            units = entry.get("units")
            units = None if units is None else tuple(_from_hex(row) for row in units)
            asked = (entry["sparsity"], entry["criterion"], entry["scope"])
            rest = (entry.get("calibration"), units, entry.get("rescale", False))
            return Prune(built[inputs[0]], *asked, counts, *rest, submodels=tuple(entry.get("submodels") or ()))
        case "repair":
            return Repair(built[inputs[0]], entry["calibration"], entry["damping"])
        case "cast":
            return Cast(built[inputs[0]], entry["dtype"])
        case _:
            if entry["digest"] not in known:
                raise InputError(f"refers to digest {entry['digest']!r}, which is not at hand")
            return known[entry["digest"]]


def _own(node: Recipe) -> dict[str, Any]:
    """Return the fields of a node without its inputs, ready for JSON."""
    match node:
        case Expert():
            return {"node": "expert", "name": node.name}
        case Merge():
            params = {"params": dict(node.params)} if node.params else {}
            return {"node": "merge", "method": node.method, "weights": node.weights} | params
        case Prune():
            asked = {"sparsity": node.sparsity, "criterion": node.criterion, "scope": node.scope}
            units = None if node.units is None else [_as_hex(row) for row in node.units]
            rescale = True if node.rescale else None
            rest: dict[str, Any] = {"counts": node.counts, "calibration": node.calibration, "units": units}
            rest |= {"rescale": rescale, "submodels": node.submodels or None}
            return {"node": "prune"} | asked | {name: value for name, value in rest.items() if value is not None}
        case Repair():
            return {"node": "repair", "calibration": node.calibration, "damping": node.damping}
        case Cast():
            return {"node": "cast", "dtype": node.dtype}
        case _:
            raise TypeError(f"not a recipe node: {type(node).__name__}")


def _seal(node: Recipe) -> None:
    content = dumps([_own(node), [child.key for child in children(node)]])
    object.__setattr__(node, "key", hashlib.sha256(content.encode()).hexdigest())


def _check_calibration(node: str, digest: object) -> None:
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"{node}: expected 64 hexadecimal digits as calibration, got {digest!r}")


def _as_hex(row: Sequence[int]) -> str:
    flags = bytearray(row[-1] // 8 + 1 if row else 1)
    for unit in row:
        flags[unit // 8] |= 1 << (unit % 8)
    return f"{int.from_bytes(flags, 'little'):x}"


def _from_hex(text: Any) -> tuple[int, ...]:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]+", text):
        raise InputError(f"expected the units of a block as a hexadecimal number, got {text!r}")
    flags = int(text, 16)
    return tuple(i for i, flag in enumerate(reversed(f"{flags:b}")) if flag == "1")


def _setting_rows(value: Sequence[Any], inputs: int, where: str) -> Any:
    """Return a setting that differs by input (one number each), or by group or tensor (rows of 1 or that many)."""
    rows = Rows.of(numbers(value, where))
    if all(len(row) in ((1, inputs) if rows.placed else (inputs,)) for row in rows.rows):
        return rows.value
    raise InputError(f"{where}: expected {inputs} numbers, one per input, or rows of one or as many, got {value!r}")


def _describe(node: Recipe, depth: int) -> str:
    if depth == 0 and not isinstance(node, Expert):
        return f"<{node.key[:8]}>"
    match node:
        case Expert():
            return f"Expert({node.name!r})"
        case Merge():
            inner = ", ".join(_describe(child, depth - 1) for child in node.inputs)
            weights = f"<{len(node.weights)} rows>" if Rows.of(node.weights).placed else node.weights
            return f"Merge({node.method!r}, ({inner}), weights={weights})"
        case Prune():
            rows = Rows.of_places(node.sparsity)
            asked = f"<{len(rows.rows)} rows>" if rows.placed else rows.at(0, 0, 1)[0]
            rest = (f", scope={node.scope!r}" if node.scope in STRUCTURED else "") + ", rescale=True" * node.rescale
            return f"Prune({_describe(node.input, depth - 1)}, sparsity={asked}{rest})"
        case Repair():
            return f"Repair({_describe(node.input, depth - 1)})"
        case Cast():
            return f"Cast({_describe(node.input, depth - 1)}, {node.dtype!r})"
        case _:
            return object.__repr__(node)
