"""Export formats: what a found model can be handed on as. A format is one row here, and nobody else knows its name.

Needs no torch: command lines and documents ask the rows, `order.Order.write` imports what writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from sae_moo.deploy import zeros
from sae_moo.recipe.catalogue import Catalogue, Row

WORDS = ("output", "base", "unpacked", "merged", "ask")
"""What a `Format.next_step` can name in braces; see there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format(Row):
    """One export format.

    Args:
        summary: what is written, in a few words without a full stop.
        write: ``module:function``, called with an `order.Order` and the path to write to: a folder that is there and
            empty, or a file that is there and empty. It takes its own name afterwards, or vanishes if anything is
            raised: `InputError` where the format cannot hold the model. The function writes, and hands what loads to
            `Order.verified`.
        loads: what reads it, for people.
        folder: whether it is a folder; else one file.
        endings: what the file's name may end in; anything if empty.
        needs: what of a model it needs, and refuses it without; empty if it holds any.
        tokenizer: whether it holds a tokenizer, chat template and settings of generation.
        smaller: whether it leaves out what is zero as a whole: only such a format can hold a mixture that lacks
            experts, since a router would choose zeros (`mixtures.check_whole`).
        transformers: whether transformers loads it, or what is unpacked from it; the model card then says how.
        verified: what is done to it before `--verify` compares tensors and scores; empty if it cannot be verified.
        estimate: ``module:function``, called with the `stream.Stream` of a model, returns an `estimate.Sizing`; None if
            its size is not known beforehand.
        gains: who gains what by it, as far as that holds for every model; `--estimate` says it.
        next_step: commands to go on with -> what they do. They may name, quoted for a shell, ``{output}`` (what was
            written), ``{base}`` (where the base was taken from), ``{unpacked}`` and ``{merged}`` (names beside the
            output that say so) and ``{ask}`` (a Python program that loads the folder and asks it something).

    Raises:
        ValueError: for another word in braces.
    """

    summary: str
    write: str
    loads: str
    folder: bool = True
    endings: tuple[str, ...] = ()
    needs: str = ""
    tokenizer: bool = True
    smaller: bool = False
    transformers: bool = True
    verified: str = ""
    estimate: str | None = None
    gains: str = ""
    next_step: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for command, _ in self.next_step:
            words = {word for _, word, _, _ in Formatter().parse(command) if word is not None}
            if not words <= set(WORDS):
                unknown = ", ".join(sorted(words - set(WORDS)))
                raise ValueError(f"next_step of {self.name}: expected words among {', '.join(WORDS)}, got {unknown}")


_ASKED = (("python -c {ask}", "loaded as any model is, and asked"),)
_ANY_LOADER = "whatever loads the base: transformers, vLLM, converters for llama.cpp"

USUAL = "hf"
"""What is written unless another is named."""

FORMATS: Catalogue[Format] = Catalogue(
    "format",
    "sae_moo.formats",
    Format,
    [
        Format(
            name=USUAL,
            summary="a folder of dense weights",
            write="sae_moo.deploy.writers:dense",
            loads=_ANY_LOADER,
            verified="loaded as it is",
            estimate="sae_moo.deploy.estimate:Dense",
            next_step=_ASKED,
        ),
        Format(
            name="packed",
            summary="one file of what is not zero",
            write="sae_moo.deploy.writers:packed",
            folder=False,
            loads="sae-moo unpack, bit for bit to hf",
            verified="unpacked",
            estimate="sae_moo.deploy.estimate:Packed",
            gains="download and disk; the unpacked folder is hf: none",
            next_step=(("sae-moo unpack {output} --output {unpacked}", "the folder, bit for bit"),),
        ),
        Format(
            name="delta",
            summary="one file of what is not the base's",
            write="sae_moo.deploy.writers:delta",
            folder=False,
            loads="sae-moo unpack with the base, bit for bit to hf",
            verified="unpacked",
            estimate="sae_moo.deploy.estimate:Delta",
            gains="download and disk, for who has the base; the unpacked folder is hf: none",
            next_step=(("sae-moo unpack {output} --base {base} --output {unpacked}", "the folder, bit for bit"),),
        ),
        Format(
            name="recipe",
            summary="no weights",
            write="sae_moo.deploy.writers:recipe",
            loads="sae-moo merge with base and experts, bit for bit to hf",
            tokenizer=False,
            transformers=False,
            verified="merged",
            estimate="sae_moo.deploy.estimate:Recipe",
            gains="download, for who has base and experts; the merged folder is hf: none",
            next_step=(("sae-moo merge {output}/recipe.json --output {merged}", "the folder, from the experts"),),
        ),
        Format(
            name="mergekit",
            summary="a YAML file, where mergekit can say the recipe",
            write="sae_moo.deploy.writers:mergekit",
            folder=False,
            endings=(".yaml", ".yml"),
            loads="mergekit-yaml or sae-moo merge, with base and experts",
            needs="a recipe that mergekit has words for: no pruning, no methods that only sae-moo has",
            tokenizer=False,
            transformers=False,
            verified="merged by sae-moo",
            estimate="sae_moo.deploy.estimate:Mergekit",
            gains="download, for who has mergekit, base and experts; the merged folder is hf: none",
            next_step=(
                ("mergekit-yaml {output} {merged}", "merged by mergekit"),
                ("sae-moo merge {output} --output {merged}", "or here"),
            ),
        ),
        Format(
            name="structured",
            summary="a folder without blocks, neurons, heads and experts of mixtures that are zero as a whole",
            write="sae_moo.deploy.writers:structured",
            smaller=True,
            loads=_ANY_LOADER,
            needs="blocks that are zero as a whole, or neurons, heads or experts of each, as pruning.scope has it",
            verified="loaded as it is; scores may differ by rounding where units are gone",
            estimate="sae_moo.deploy.estimate:Structured",
            gains=f"all: {zeros.STRUCTURED}",
            next_step=_ASKED,
        ),
    ],
)
