"""PEFT adapters as experts: the base's weights and what the adapter does to them, computed per tensor on load."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_moo.errors import InputError, first_few, itemized
from sae_moo.experts.adapter_kinds import KIN, SHARED, Matrix
from sae_moo.experts.adapter_settings import AdapterSettings
from sae_moo.experts.checkpoint import (
    ADAPTER_WEIGHTS,
    Checkpoint,
    TensorFacts,
    digest_of,
    locate,
    opened,
    remember,
    remembered,
    stamp_of,
)
from sae_moo.experts.layout import HEADS, STORED_DTYPES, stored_turned
from sae_moo.experts.skeleton import Parameter, Piece, Places
from sae_moo.experts.updates import Block, Product, Rescaling, Rows, Shift, Update

_PREFIX = "base_model.model."
# What PEFT calls the tensors of its own that it hangs on a module. Those of one module make one update.
_PARTS = {
    "LORA": r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
    r"|token_adapter\.trainable_tokens_delta",
    "LN_TUNING": r"(?!)",
    "TRAINABLE_TOKENS": r"(?:token_adapter\.)?trainable_tokens_delta",
} | {kind: row.parts for kind, row in KIN.items()}
_OWN_WORDS = re.compile(r"\.(?:lora_|hada_|vera_|lokr_|ia3_|trainable_tokens_|ln_tuning_layers\.)")
# Where a wrapped module keeps whole tensors; an untouched copy stands beside the one that was trained.
_WRAPPER = re.compile(r"\.(?:modules_to_save|token_adapter\.base_layer|base_layer|ln_tuning_layers)(?=\.[^.]+$)")
_IDLE = (".lora_velora_embed",)
"""What only training uses: VeLoRA's projection of activations."""
_ORIGINAL = ".original_module."
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


class Adapter:
    """A PEFT adapter over a base model, read as if it were a checkpoint of its own.

    LoRA and its kin (`adapter_settings.KINDS`) in every form that PEFT's ``merge_and_unload`` turns into the model that
    was trained, to its numbers: float32 arithmetic in PEFT's order, rounded once to the dtype of the base's tensor; see
    `updates`. Whole tensors in the adapter (``modules_to_save``, biases, resized embeddings) replace the base's. Every
    other tensor is the base's own, memory-mapped. Nothing merged is kept.

    LoRA on embeddings or head is refused where the base ties the two: without ``ensure_weight_tying`` it is trained as
    if they were apart, and adding it to the one matrix there is makes another model than the one that was trained; with
    it, PEFT's own merge adds it twice.

    Args:
        source: as the user wrote it; see `locate`.
        base: the model it was trained on.
        relative_to: folder that relative paths start from.

    Raises:
        InputError: listing every setting that is not understood and every tensor that finds no place in the base.
    """

    def __init__(self, source: str, base: Checkpoint, relative_to: Path | None = None) -> None:
        self.source = source
        self.base = base
        self.folder, self.origin = locate(source, relative_to)
        self.config: Mapping[str, Any] = base.config
        self.tied = base.tied
        self._settings = AdapterSettings(self.folder)
        self._file = self.folder / ADAPTER_WEIGHTS
        if not self._file.is_file():
            raise InputError(f"{self.folder}: an adapter without {ADAPTER_WEIGHTS}{_other_files(self.folder)}")
        self._handle = opened(self._file)
        self._places = Places(base)
        self._whole: dict[str, tuple[str, Piece]] = {}
        self._updates: dict[str, Update] = {}
        faults = list(self._placed())
        self.tensors: Mapping[str, TensorFacts] = {
            name: self._replaced(name) if name in self._whole else facts for name, facts in base.tensors.items()
        }
        faults = faults or list(self._untied())
        if not faults and not self._whole and not self._updates:
            faults = [f"expected tensors named {_PREFIX}*.lora_A.weight, there are none"]
        if faults:
            title = f"{self.source}: the adapter does not fit its base {base.source}"
            told = [f"names are compared as they stand: {self._places.trouble}"] if self._places.trouble else []
            raise InputError(itemized(title, [*first_few(faults), *told], within=True))
        self.vocabulary = self.tensors[base.embeddings].shape[0] if base.embeddings else None

    def load(self, name: str) -> Tensor:
        """Return one tensor: the base's own if it is not adapted, else computed anew; do not write to it."""
        if name in self._whole:
            whole, piece = self._whole[name]
            weight = piece.of(self._read(whole)).to(STORED_DTYPES[self.tensors[name].dtype])
        else:
            weight = self.base.load(name)
        return self._updates[name].applied(weight, self._read) if name in self._updates else weight

    def stored(self, name: str) -> bool:
        """Say whether a tensor is read as it lies in a file: the base's own, or one that the adapter replaces whole."""
        if name not in self._whole:
            return name not in self._updates
        whole, piece = self._whole[name]
        as_it_is = piece.view is None and self._facts(whole).dtype == self.tensors[name].dtype
        return as_it_is and name not in self._updates

    def shares_base(self, name: str) -> bool:
        """Say whether a tensor is the base's own."""
        return name not in self._updates and name not in self._whole

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the adapter's tensors, where they go, their scales, and the base's fingerprint.

        Reads the adapter and composes every adapted tensor once: an overflow on the way is found here. Kept like a
        checkpoint's.

        Raises:
            InputError: naming the tensors that hold NaN or an infinity.
        """
        places = [[name, *update.facts] for name, update in sorted(self._updates.items())]
        places += [[name, piece.view] for name, (_, piece) in sorted(self._whole.items()) if piece.view is not None]
        stamp = stamp_of(self.folder, [self._file], [places, self.base.fingerprint])
        known = remembered(stamp)
        if known:
            return known
        parts = sorted(self._parts())
        own = ((place, self._read(name)) for place, name in parts)
        fingerprint = digest_of(self.source, own, "lora", places, self.base.fingerprint)
        broken = [name for name in sorted(self._updates) if not torch.isfinite(self.load(name)).all()]
        if broken:
            raise InputError(
                f"{self.source}: base and adapter add up to NaN or infinite weights in {', '.join(broken[:5])}"
            )
        remember(stamp, fingerprint)
        return fingerprint

    def _parts(self) -> Iterator[tuple[str, str]]:
        """Yield what a tensor of the adapter is for, in the base's names, and its own name."""
        yield from ((place, name) for place, (name, _) in self._whole.items())
        for place, update in self._updates.items():
            yield from ((f"{place} {role}", name) for role, name in update.parts.items())

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def _facts(self, name: str) -> TensorFacts:
        part = self._handle.get_slice(name)
        return TensorFacts(tuple(part.get_shape()), str(part.get_dtype()))

    def _replaced(self, name: str) -> TensorFacts:
        """Return the shape of a whole tensor in the adapter, and the dtype of the base's, which PEFT loads it into."""
        whole, piece = self._whole[name]
        shape = self._facts(whole).shape if piece.view is None else piece.view[0]
        return TensorFacts(shape, self.base.tensors[name].dtype)

    def _placed(self) -> Iterator[str]:
        """Find the place of every tensor in the base; yield a fault for each that has none."""
        names = sorted(self._handle.keys())
        part = re.compile(rf"(?P<module>.+)\.(?P<part>{_PARTS[self._settings.kind]})")
        modules: dict[str, dict[str, str]] = {}  # module -> part -> name in the file
        wholes: dict[str, list[str]] = {}  # name without the wrapper's words -> names in the file
        for name in names:
            dtype = self._facts(name).dtype
            inner = name.removeprefix(_PREFIX)
            found = part.fullmatch(inner)
            if dtype not in STORED_DTYPES:
                yield f"{name} has dtype {dtype}, expected {', '.join(STORED_DTYPES)}"
            elif name in SHARED and self._settings.kind == "VERA":
                continue
            elif inner == name:
                yield f"{name}: expected a name that begins with {_PREFIX}"
            elif inner.endswith(_IDLE):
                continue
            elif found:
                modules.setdefault(found["module"], {})[found["part"]] = name
            elif _OWN_WORDS.search(inner) and not (self._settings.kind == "LN_TUNING" and _WRAPPER.search(inner)):
                yield f"{name} has no place in the base"
            else:
                wholes.setdefault(_WRAPPER.sub("", inner.replace(_ORIGINAL, ".")), []).append(name)
        yield from self._absent(modules, wholes)
        for bare, copies in wholes.items():
            yield from self._place_whole(bare, copies)
        for module, parts in modules.items():
            yield from self._place_update(module, parts)

    def _absent(self, modules: Mapping[str, Mapping[str, str]], wholes: Mapping[str, Any]) -> Iterator[str]:
        """Yield what the settings say was trained, of which the file holds nothing."""
        for entry in self._settings.values.get("modules_to_save") or ():
            in_base = any(f".{entry}." in f".{name}" for name in self.base.tensors)
            if in_base and not any(f".{entry}." in f".{name}" for name in wholes):
                yield f"modules_to_save names {entry}, of which the file holds no tensor"
        tokens = [module for module, parts in modules.items() if any("trainable_tokens" in part for part in parts)]
        for entry in self._settings.token_modules():
            anywhere = not entry or self._places.tied
            if not any(anywhere or f".{module}".endswith(f".{entry}") for module in tokens):
                yield f"the settings name trained tokens of {entry or 'the embeddings'}, of which the file holds none"

    def _place_whole(self, bare: str, copies: Sequence[str]) -> Iterator[str]:
        """Enter a whole tensor, of which PEFT may write some copies; yield what does not fit."""
        trained = [name for name in copies if _ORIGINAL not in name]
        if not trained:
            yield f"{copies[0]}: a copy of the base's, without the tensor that was trained in its stead"
            return
        odd = [name for name in trained[1:] if not _same(self._read(trained[0]), self._read(name))]
        if odd:
            yield f"{trained[0]} and {odd[0]} are one tensor's values, and differ"
            return
        if self._places.tied and self._places.is_head(bare):
            self._whole[HEADS[0]] = trained[0], Piece(HEADS[0])  # compared with the embeddings below
            return
        place = self._places.find(bare)
        if place is None:
            yield f"{trained[0]} has no place in the base"
            return
        shape = self._facts(trained[0]).shape
        if any(piece.view is not None for piece in place.pieces) and shape != place.shape:
            yield f"{trained[0]} has shape {shape}, the base's has {place.shape}"
            return
        for piece in place.pieces:
            self._whole[piece.name] = trained[0], piece

    def _place_update(self, module: str, parts: Mapping[str, str]) -> Iterator[str]:
        """Enter what the tensors of one module do; yield what does not fit."""
        first = parts[min(parts)]
        parameter = self._target(module)
        tokens = next((name for part, name in parts.items() if part.endswith("trainable_tokens_delta")), None)
        place = None if parameter is None else self._places.find(parameter)
        if parameter is None or place is None:
            if self._places.tied and self._places.is_head(f"{module}.weight"):
                yield f"{first}: {self._tied_head(tokens)}"
            else:
                yield from (f"{name} has no place in the base" for name in parts.values())
        elif self._places.tied and not tokens and place.pieces[0].name == self.base.embeddings:
            yield f"{first}: {self._tied_embeddings()}"
        elif tokens is not None:
            yield from self._place_rows(module, tokens, place) if len(parts) == 1 else [f"{first}: LoRA beside tokens"]
        elif self._settings.kind == "LORA":
            yield from self._place_product(parameter, place, parts)
        else:
            yield from self._place_kin(module, place, parts)

    def _target(self, module: str) -> str | None:
        """Return the parameter that a module's tensors change: its weight, or what ``target_parameters`` names.

        PEFT wraps a module once for each of its parameters that is a target, in the order they are declared: the last
        one's tensors bear the module's name, the one before's ``base_layer`` after it, and so on.
        """
        inner = module
        while inner.endswith(".base_layer"):
            inner = inner.removesuffix(".base_layer")
        depth = (len(module) - len(inner)) // len(".base_layer")
        if not self._settings.values.get("target_parameters"):
            return None if depth else f"{module}.weight"
        live = self._places.live_name(inner)
        own = () if live is None or self._places.skeleton is None else self._places.skeleton.own_parameters(live)
        targets = [name for name in own if self._settings.targeted(f"{live}.{name}")]
        if not targets:
            return None if depth else f"{module}.weight"
        return f"{live}.{targets[-1 - depth]}" if depth < len(targets) else None

    def _place_product(self, parameter: str, place: Parameter, parts: Mapping[str, str]) -> Iterator[str]:
        """Enter LoRA's factors."""
        module = parameter.removesuffix(".weight")
        direct = self._settings.targeted(parameter)  # the parameter is the target, not its module
        embedding = any(part in _EMBEDDING for part in parts)
        of_a, of_b = _EMBEDDING if embedding else ("lora_A.weight", "lora_B.weight")
        if not {of_a, of_b} <= parts.keys():
            yield f"{parts[min(parts)]}: expected both lora_A and lora_B of {module}"
            return
        name = parts[of_a]
        shape = self._shape(place)
        experts = shape[0] if direct and len(shape) == 3 else 1
        rank = self._settings.rank(parameter if direct else module)
        a, b = self._facts(name).shape, self._facts(parts[of_b]).shape
        if (
            len(a) < 2
            or len(a) != len(b)
            or a[0] != rank * experts
            or b[1] != rank * experts
            or any(n != 1 for n in b[2:])
        ):
            stacked = f" for each of {experts} experts" if experts > 1 else ""
            yield f"{name} and lora_B have shapes {a} and {b}, expected rank {rank}{stacked}"
            return
        straight, turned = (b[0], *a[1:]), (a[1], b[0])
        matrix = shape[1:] if experts > 1 else shape
        if direct:
            skeleton = self._places.skeleton
            # PEFT takes a stack for experts x outputs x inputs, unless its module says that it is transposed
            owner = parameter.rpartition(".")[0]
            transposed = len(shape) == 3 and skeleton is not None and skeleton.is_transposed(owner)
        elif embedding:
            transposed = True
        elif straight == turned:
            like_the_base = stored_turned(self.config) or self._settings.says("fan_in_fan_out")
            transposed = like_the_base and place.pieces[0].name != self.base.head
        else:
            transposed = matrix == turned
        if matrix != (turned if transposed else straight):
            where = place.pieces[0].name if len(place.pieces) == 1 else parameter
            yield f"{name} and lora_B make a product of shape {straight}, {where} has {matrix}"
            return
        magnitude = parts.get("lora_magnitude_vector", parts.get("lora_magnitude_vector.weight"))
        if magnitude and (len(shape) != 2 or direct or self._facts(magnitude).shape[-1:] != (b[0],)):
            yield f"{magnitude}: expected one magnitude of the {b[0]} outputs of a linear layer or embedding"
            return
        if not magnitude and self._settings.says("use_dora"):
            yield f"{name}: use_dora is set, expected magnitudes (lora_magnitude_vector) beside it"
            return
        if self._settings.says("lora_bias") and not embedding and not direct and "lora_B.bias" not in parts:
            yield f"{name}: lora_bias is set, expected lora_B.bias beside it"
            return
        scale = self._settings.scale(parameter if direct else module)
        for piece in place.pieces:
            blocks = (
                (Block(0, (0, b[0], 1), (0, _volume(a[1:]), 1), transposed),)
                if experts == 1 and piece.view is None
                else piece.blocks(shape, transposed)
            )
            if not blocks or (magnitude and piece.view is not None):
                yield f"{name}: {piece.name} is no block of {parameter}"
                return
            product = Product(name, parts[of_b], magnitude, scale, blocks, experts, embedding or direct)
            yield from self._enter(piece.name, product)
        if "lora_B.bias" in parts:
            yield from self._place_bias(module, parts["lora_B.bias"], lambda bias: Shift(bias, scale), (b[0],))

    def _place_bias(self, module: str, name: str, update: Any, shape: tuple[int, ...]) -> Iterator[str]:
        place = self._places.find(f"{module}.bias")
        if place is None or len(place.pieces) != 1 or place.pieces[0].view is not None:
            yield f"{name}: {module} has no bias in the base to add it to"
        elif self._shape(place) != shape:
            yield f"{name} has {shape[0]} values, {place.pieces[0].name} has {self._shape(place)}"
        else:
            yield from self._enter(place.pieces[0].name, update(name))

    def _place_rows(self, module: str, name: str, place: Parameter) -> Iterator[str]:
        """Enter trained tokens."""
        rows = self._settings.token_rows(module)
        target = place.pieces[0].name
        height, *width = self._shape(place) or (0,)
        if rows is None:
            yield f"{name}: the settings do not say which tokens of {module} these are"
        elif self._facts(name).shape != (len(rows), *width) or len(place.pieces) != 1:
            yield f"{name} has shape {self._facts(name).shape}, expected {(len(rows), *width)} for {len(rows)} tokens"
        elif len(set(rows)) != len(rows) or not all(0 <= row < height for row in rows):
            yield f"{name}: expected distinct tokens, each one of the {height} rows of {target}; got {str(rows)[:80]}"
        else:
            yield from self._enter(target, Rows(name, tuple(rows)))

    def _place_kin(self, module: str, place: Parameter, parts: Mapping[str, str]) -> Iterator[str]:
        """Enter what the kinds of adapters other than LoRA do to a matrix."""
        piece, first, shape = place.pieces[0], min(parts.values()), self._shape(place)
        if len(place.pieces) != 1 or piece.view is not None or len(shape) != 2:
            yield f"{first}: expected a matrix of the checkpoint, {module}.weight has shape {shape}"
            return
        turned = stored_turned(self.config) and piece.name != self.base.head
        outputs, inputs = reversed(shape) if turned else shape
        shared = {name: name for name in SHARED if name in self._handle.keys()}  # noqa: SIM118  # no mapping
        names = {**parts, **shared}
        shapes = {part: self._facts(name).shape for part, name in names.items()}
        update = KIN[self._settings.kind].built(Matrix(module, outputs, inputs, turned, names, shapes), self._settings)
        if isinstance(update, str):
            there = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
            yield f"{first}: expected {update}; there are {there}"
            return
        yield from self._enter(piece.name, update)
        if isinstance(update, Rescaling) and shapes["ia3_l"][0] == outputs and self._places.find(f"{module}.bias"):
            yield from self._place_bias(module, first, lambda bias: Rescaling(bias, turned), (outputs,))

    def _shape(self, place: Parameter) -> tuple[int, ...]:
        """Return the shape of a parameter, as the adapter replaces it where it does."""
        whole = self._whole.get(place.pieces[0].name)
        return self._facts(whole[0]).shape if whole else place.shape

    def _enter(self, name: str, update: Update) -> Iterator[str]:
        if name in self._updates:
            first, second = (min(each.parts.values()) for each in (self._updates[name], update))
            yield f"{second}: a second update of {name}, beside {first}"
        self._updates[name] = update

    def _tied_embeddings(self) -> str:
        if self._settings.says("ensure_weight_tying"):
            return (
                "LoRA on embeddings tied to the head (ensure_weight_tying), which PEFT's own merge adds twice, so that "
                "it makes another model than the one that was trained"
            )
        return "LoRA on embeddings tied to the head, which was trained as if untied"

    def _tied_head(self, tokens: str | None) -> str:
        if tokens is not None:
            return "tokens of a head tied to the embeddings, trained apart from these, which would untie it"
        if self._settings.says("ensure_weight_tying"):
            return self._tied_embeddings()
        return "LoRA on a head tied to the embeddings, which would untie it"

    def _untied(self) -> Iterator[str]:
        """Yield that the adapter unties what the base ties; whole tensors' shapes are compared like a checkpoint's."""
        embeddings = self.base.embeddings
        if not self._places.tied or embeddings is None:
            return
        head = self._whole.pop(HEADS[0], None)
        if head is None and embeddings not in self._whole:
            return
        here = self._read(self._whole[embeddings][0]) if embeddings in self._whole else self.base.load(embeddings)
        there = self._read(head[0]) if head else self.base.load(embeddings)
        if not _same(here, there):
            changed = head[0] if head else self._whole[embeddings][0]
            yield f"{changed} unties the head from the embeddings, which the base ties"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _volume(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _other_files(folder: Path) -> str:
    """Return what lies there instead: pickles, adapters under names of their own."""
    if any(folder.glob("adapter_model.bin")):
        return " (adapter_model.bin is pickled, which can run code when opened: load it with PEFT and save it anew)"
    named = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_WEIGHTS}"))
    return f" (there is one in each of {', '.join(named[:5])}: name one of these folders)" if named else ""
