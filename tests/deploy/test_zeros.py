"""What is said of zeros where a model runs: the same facts in every place, and none that a measurement denies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sae_moo.deploy.card import Card
from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS
from sae_moo.deploy.stream import Stream
from sae_moo.recipe import Expert, Prune

ROOT = Path(__file__).parents[2]
ROWS = {1: "0.03", 256: "0.04", 1024: "0.11", 4096: "0.40", 8192: "1.24"}
TWO_FOUR = (
    *ROWS.values(),
    *map(str, ROWS),
    "0.92",
    "8192 x 4096",
    "4096 x 11008",
    "H100 80GB",
    "cuSPARSELt 0.8.0",
    "bfloat16",
)
GONE = ("CUTLASS", "vLLM and llm-compressor dropped", "torchao")
NOT_MEASURED = ("torch.compile", "CUDA graphs", "not measured")
SCATTERED = (
    "MACKO-SpMV",
    "arXiv 2511.13061",
    "MIT",
    "1.5 times the tokens per second",
    "1.5 times less memory",
    "sparsity 0.5",
)
LIMITS = ("float16", "one sequence at a time", "consumer NVIDIA card", "format of its own", "not tried here")
DENIED = re.compile(
    r"no runtime is faster|faster on NVIDIA|from Ampere|faster everywhere|faster in every runtime|none is faster by it"
    r"|is faster by it|serve cheaply"
)


def passed(pool, recipe) -> Stream:
    stream = Stream(recipe, pool, torch.float32)
    for entry in stream.entries:
        stream.tensor(entry.name)
    return stream


def card(pool, recipe) -> str:
    return Card("m", "because", {}, {}).of(passed(pool, recipe)).text(pool)


def estimate(pool, recipe) -> str:
    (found,) = estimates(Stream(recipe, pool, torch.float32), [FORMATS["hf"]])
    return found.gains


def pruned(scope: str) -> Prune:
    return Prune(Expert("math"), 0.5, scope=scope)


def missing(text: str, facts) -> list[str]:
    plain = re.sub(r"[*`\s]+", " ", text)
    return [fact for fact in facts if fact not in plain]


@pytest.mark.parametrize("said", [card, estimate])
def test_a_card_and_an_estimate_say_what_was_measured_of_2_4_and_recommend_nothing(tiny, said):
    text = said(tiny, pruned("2:4"))
    assert missing(text, (*TWO_FOUR, *GONE, *NOT_MEASURED, "is not recommended", "14 of 14 prunable matrices")) == []
    assert "import to_sparse_semi_structured" not in text
    assert "MACKO" not in text


@pytest.mark.parametrize("said", [card, estimate])
def test_a_card_and_an_estimate_name_who_gains_by_scattered_zeros_and_within_what_limits(tiny, said):
    text = said(tiny, pruned("tensor"))
    assert missing(text, (*SCATTERED, *LIMITS)) == []
    assert "2:4" not in text


def test_of_a_model_without_zeros_nothing_is_said(tiny):
    assert "Zeros and speed" not in card(tiny, Expert("math"))
    assert estimate(tiny, Expert("math")) == "none: there are no zeros"


@pytest.mark.parametrize("page", ["docs/pruning.md", "studies/deploy/README.md"])
def test_a_page_says_the_same(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert missing(text, (*TWO_FOUR, *GONE, *NOT_MEASURED, *SCATTERED, *LIMITS)) == []


def test_the_readme_says_it_in_short_and_leads_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert missing(text, ("0.03", "1.24", "H100", "MACKO-SpMV reports 1.5 times", "consumer card")) == []
    assert "docs/pruning.md#which-scope-makes-a-model-faster" in text


def test_the_table_of_the_study_is_what_the_code_says():
    table = (ROOT / "studies" / "deploy" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d\.\d\d) \| at most 0\.92 \|$", table, re.M)
    assert {int(count): factor for count, factor in rows} == ROWS


def test_nowhere_is_said_what_was_found_not_to_be_so():
    files = [ROOT / "README.md"]
    files += [
        each
        for room in ("sae_moo", "docs", "studies")
        for kind in ("*.py", "*.md")
        for each in (ROOT / room).rglob(kind)
    ]
    denied = {
        str(each.relative_to(ROOT)): DENIED.findall(" ".join(each.read_text(encoding="utf-8").split()))
        for each in files
    }
    assert {name: found for name, found in denied.items() if found} == {}
