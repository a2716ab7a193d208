"""Kinds of adapters beside LoRA: what the tensors that each hangs on a matrix do to it. A kind is a row of `KIN`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sae_moo.experts.adapter_settings import AdapterSettings
from sae_moo.experts.updates import Block, Hadamard, Kronecker, Product, Rescaling, Update

SHARED = ("base_model.vera_A", "base_model.vera_B")
"""What VeRA's adapters hold once for all modules: random matrices, rank x most inputs and most outputs x rank."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of the base, and an adapter's tensors for it.

    Args:
        module: the module's name, as the adapter has it.
        outputs: how many there are.
        inputs: how many there are.
        turned: whether the checkpoint stores it inputs x outputs.
        names: part, as PEFT calls it -> its name in the adapter's file.
        shapes: part -> its shape.
    """

    module: str
    outputs: int
    inputs: int
    turned: bool
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The whole of a product of outputs x inputs."""
        return (Block(0, (0, self.outputs, 1), (0, self.inputs, 1), self.turned),)

    def product(self, parts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the shape of a part, or of the product of two; None if they make none."""
        found = [self.shapes.get(part, ()) for part in parts]
        if any(len(shape) != 2 for shape in found) or (len(found) == 2 and found[0][1] != found[1][0]):
            return None
        return found[0][0], found[-1][1]


Builder = Callable[[Matrix, AdapterSettings], "Update | str"]
"""Returns what the tensors do, or what was expected of them."""


def _rescaling(matrix: Matrix, settings: AdapterSettings) -> Update | str:  # noqa: ARG001
    allowed = ((matrix.outputs, 1), (1, matrix.inputs))
    if matrix.shapes["ia3_l"] not in allowed:
        return f"a vector of shape {allowed[0]} or {allowed[1]}"
    return Rescaling(matrix.names["ia3_l"], matrix.turned)


def _hadamard(matrix: Matrix, settings: AdapterSettings) -> Update | str:
    first, second = ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")
    shape = (matrix.outputs, matrix.inputs)
    if matrix.turned or matrix.product(first) != shape or matrix.product(second) != shape:
        return f"hada_w1_a, w1_b, w2_a and w2_b with products of shape {shape} over a matrix stored outputs x inputs"
    names = tuple(matrix.names[part] for part in (*first, *second))
    return Hadamard((names[0], names[1], names[2], names[3]), settings.scale(matrix.module))


def _kronecker(matrix: Matrix, settings: AdapterSettings) -> Update | str:
    sides = [(side,) if side in matrix.shapes else (f"{side}_a", f"{side}_b") for side in ("lokr_w1", "lokr_w2")]
    left, right = (matrix.product(side) for side in sides)
    product = (left[0] * right[0], left[1] * right[1]) if left and right else None
    known = matrix.shapes.keys() == {part for side in sides for part in side}
    if matrix.turned or not known or product != (matrix.outputs, matrix.inputs):
        shape = (matrix.outputs, matrix.inputs)
        return f"lokr_w1 and w2 with a Kronecker product of shape {shape} over a matrix stored outputs x inputs"
    first, second = (tuple(matrix.names[part] for part in side) for side in sides)
    return Kronecker(first, second, settings.scale(matrix.module))


def _allocated(matrix: Matrix, settings: AdapterSettings) -> Update | str:
    """AdaLoRA: a product with singular values between (Zhang et al. 2023, arXiv 2303.10512, eq. 3); PEFT's scale."""
    shape, rank = (matrix.outputs, matrix.inputs), matrix.shapes.get("lora_E", ())[:1]
    product = matrix.product(("lora_B", "lora_A"))
    if product != shape or matrix.shapes.get("lora_E") != (*rank, 1) or matrix.shapes["lora_A"][:1] != rank:
        return f"lora_A, lora_B and lora_E with a product of shape {shape}"
    start = settings.values.get("init_r", 12)
    alpha = settings.values.get("lora_alpha", 8)
    scale = (alpha if alpha > 0 else start) / (start + 1e-5)  # peft keeps it from before ranks were cut
    names = matrix.names
    return Product(names["lora_A"], names["lora_B"], None, scale, matrix.blocks, inner=names["lora_E"])


def _shared(matrix: Matrix, settings: AdapterSettings) -> Update | str:  # noqa: ARG001
    """VeRA: random matrices that all modules share, rescaled (Kopiczko et al. 2023, arXiv 2310.11454, eq. 2)."""
    a, b = (matrix.shapes.get(name, ()) for name in SHARED)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[1] < matrix.inputs or b[0] < matrix.outputs:
        return f"{SHARED[0]} and vera_B in the same file (save_projection), over all inputs and outputs"
    if (matrix.shapes.get("vera_lambda_b"), matrix.shapes.get("vera_lambda_d")) != ((matrix.outputs,), (a[0],)):
        return f"vera_lambda_b of {matrix.outputs} numbers and vera_lambda_d of {a[0]}"
    inner, outer = matrix.names["vera_lambda_d"], matrix.names["vera_lambda_b"]
    return Product(*SHARED, None, 1.0, matrix.blocks, inner=inner, outer=outer)


@dataclass(frozen=True, slots=True)
class Kin:
    """A kind of adapter.

    Args:
        parts: a regular expression: what PEFT calls the tensors that it hangs on a module.
        built: returns what those of one module do to its weight.
    """

    parts: str
    built: Builder


KIN: Mapping[str, Kin] = {
    "ADALORA": Kin(r"lora_[ABE]", _allocated),
    "IA3": Kin(r"ia3_l", _rescaling),
    "LOHA": Kin(r"hada_w[12]_[ab]", _hadamard),
    "LOKR": Kin(r"lokr_w[12](?:_[ab])?", _kronecker),
    "VERA": Kin(r"vera_lambda_[bd]", _shared),
}
"""``peft_type`` -> the kind."""
