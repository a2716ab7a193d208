"""Kinds of architectures, tiny and random: scores and texts are those of plain passes, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from sae_moo import zoo
from sae_moo.errors import InputError, TaskError
from sae_moo.evaluate import passes
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.passes import Head
from sae_moo.evaluate.precision import in_single
from sae_moo.evaluate.reading import Layout
from sae_moo.evaluate.task import Prompt, Request
from sae_moo.evaluate.writing import TransformersWriter, Way

COMMON = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
COMMON |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4, "max_position_embeddings": 96}
COMMON |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
MIXED = ["linear_attention", "full_attention"]
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
MLA |= {"num_key_value_heads": 2, "head_dim": 4}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}


@dataclass(frozen=True)
class Kind:
    """An architecture, how its requests are read and its texts written."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    layout: Layout = Layout.SHARED
    way: Way = Way.PADDED

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.name, **{**COMMON, **self.settings}))
        model.generation_config.forced_eos_token_id = None
        for parameter in model.requires_grad_(False).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.to(dtype).eval()


KINDS = [
    Kind("llama"),
    # something between head and logits, or between body and head
    Kind("gemma2", {"final_logit_softcapping": 1.5, "query_pre_attn_scalar": 8}),
    Kind("cohere", {"logit_scale": 0.25}),
    Kind("granite", {"logits_scaling": 3.0}),
    Kind("minicpm3", {"dim_model_base": 4, "scale_emb": 3, **MLA}),
    # short convolutions, recurrences
    Kind("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, Layout.PADDED, Way.EVEN),
    Kind(
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4},
        Layout.PADDED,
        Way.EVEN,
    ),
    Kind("recurrent_gemma", {"lru_width": 16, "block_types": ["recurrent", "attention"]}, Layout.PADDED, Way.EVEN),
    Kind("rwkv", {"attention_hidden_size": 16, "context_length": 96}, Layout.PADDED, Way.ANEW),
    Kind(
        "qwen3_next",
        {"layer_types": MIXED, "num_experts": 4, "moe_intermediate_size": 8, **LINEAR}
        | {"shared_expert_intermediate_size": 8, "num_experts_per_tok": 2},
        Layout.PADDED,
        Way.EVEN,
    ),
    # windows, positions that are counted, not told; a width of its own
    Kind("mistral", {"sliding_window": 8}, Layout.PADDED),
    Kind(
        "gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2, "window_size": 60}
    ),
    Kind("bart", {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2}, Layout.PADDED, Way.EVEN),
    # no cache
    Kind("openai-gpt", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}, Layout.PADDED, Way.EVEN),
    Kind(
        "cpmant",
        {"dim_head": 8, "dim_ff": 24, "prompt_length": 2, "position_bias_num_buckets": 8},
        Layout.ALONE,
        Way.ANEW,
    ),
]
BY_NAME = {kind.name: kind for kind in KINDS}
DRAW = np.random.default_rng(5)
PROMPTS = [tuple(DRAW.integers(3, 60, length).tolist()) for length in (12, 13, 17, 25, 40)]
REQUESTS = [Request(prompt, (3 + c, 9 + i, *([5] * c))) for i, prompt in enumerate(PROMPTS) for c in range(3)]
REQUESTS += [Request(PROMPTS[0][:5], (7,), ends=(1, 2)), Request(PROMPTS[3][:9], (8, 9, 4), ends=(3,))]


@torch.inference_mode()
def plainly(model: Any, request: Request) -> tuple[float, bool]:
    tokens = [*request.context, *request.continuation][: None if request.ends else -1]
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    asked = list(enumerate(request.continuation, start=len(request.context) - 1))
    greedy = all(int(logits[place].argmax()) == token for place, token in asked)
    ended = not request.ends or int(logits[-1].argmax()) in request.ends
    return sum(float(logits.log_softmax(-1)[place, token]) for place, token in asked), greedy and ended


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_scores_are_those_of_plain_passes(kind):
    model, batches = kind.model(), Batches(REQUESTS)
    for request, answer in zip(REQUESTS, batches.score(model), strict=True):
        total, greedy = plainly(model, request)
        assert answer.logprob == pytest.approx(total, abs=3e-4)
        assert answer.greedy == greedy
    assert batches.reading.layout is kind.layout
    assert batches.reading.head is Head.PLACES


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_in_bfloat16_they_are_as_near_as_its_plain_passes(kind):
    model, batches = kind.model(torch.bfloat16), Batches(REQUESTS)
    exact = kind.model(torch.bfloat16).float()
    answers = batches.score(model)
    wanted = [plainly(exact, request)[0] for request in REQUESTS]
    own = [abs(plainly(model, request)[0] - value) for request, value in zip(REQUESTS, wanted, strict=True)]
    ours = [abs(answer.logprob - value) for answer, value in zip(answers, wanted, strict=True)]
    assert max(ours) <= 2 * max(own) + 0.01
    assert batches.reading.layout is kind.layout, "as in float32"


def test_a_window_that_only_wide_rows_exceed_is_seen():
    """More than sixty tokens in a row, of requests that have fewer than fifty."""
    model = BY_NAME["gpt_neo"].model()
    many = [*REQUESTS, *(Request(PROMPTS[4], (3 + c, 9, 3 + c, 9, c, c, c, 8, 7)) for c in range(4))]
    batches = Batches(many)
    for request, answer in zip(many, batches.score(model), strict=True):
        assert answer.logprob == pytest.approx(plainly(model, request)[0], abs=3e-4)
    assert batches.reading.layout is Layout.PADDED


@torch.inference_mode()
def continued(model: Any, prompt: Prompt) -> list[int]:
    tokens = list(prompt.context)
    while len(tokens) < len(prompt.context) + prompt.tokens and tokens[len(prompt.context) :][-1:] != [1]:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt.context) :]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(zoo.checkpoint("base"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_texts_are_those_of_plain_passes(kind, tokenizer):
    model = kind.model()
    prompts = [Prompt(context, 4 + i % 2) for i, context in enumerate([*PROMPTS, PROMPTS[1][::-1]])]
    writer = TransformersWriter(prompts, tokenizer)
    wanted = [tokenizer.decode(continued(model, prompt), skip_special_tokens=True) for prompt in prompts]
    assert writer.write(model) == wanted
    assert writer.way is kind.way


@pytest.mark.parametrize("name", ["openai-gpt", "cpmant"])
def test_a_penalty_is_obeyed_without_a_cache_or_refused_in_a_line(name, tokenizer):
    model = BY_NAME[name].model()
    model.generation_config.repetition_penalty = 5.0
    prompts = [Prompt(context, 5) for context in PROMPTS]
    writer = TransformersWriter(prompts, tokenizer)
    try:
        texts = writer.write(model)
    except InputError as error:
        assert "cannot write as its generation_config.json asks" in str(error)  # noqa: PT017 - either is right
        return
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor([prompt.context])
        own = model.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=False, pad_token_id=0)
        assert text == tokenizer.decode(own[0, tokens.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llama", "lfm2", "mistral", "cpmant", "gemma2"])
def test_how_a_model_is_read_does_not_depend_on_its_weights(name):
    kind, found = BY_NAME[name], set()
    for scale in (0.05, 1.0, 4.0):
        for dtype in (torch.float32, torch.bfloat16):
            model, batches = kind.model(seed=int(scale * 20)), Batches(REQUESTS)
            model.get_output_embeddings().weight.mul_(scale)
            batches.score(model.to(dtype))
            found.add(batches.reading)
    assert len(found) == 1


def test_layers_that_say_what_they_are_need_no_trial_to_be_read_one_by_one(monkeypatch):
    """A candidate whose convolutions were pruned to nothing shows no leak; the next one would."""
    model, batches = BY_NAME["lfm2"].model(), Batches(REQUESTS)
    for name, parameter in model.named_parameters():
        if ".conv." in name:
            parameter.zero_()
    batches.score(model)
    assert batches.reading.layout is Layout.PADDED
    next_one = BY_NAME["lfm2"].model()
    for request, answer in zip(REQUESTS, batches.score(next_one), strict=True):
        assert answer.logprob == pytest.approx(plainly(next_one, request)[0], abs=3e-4)


def test_what_gradients_pass_through_is_read_one_by_one(monkeypatch):
    """A mask that lets a trace of other choices through, too faint for logits to show."""
    reads = passes.readers_of

    def leaking(end, dtype):
        mask = torch.zeros((*end.shape, end.shape[1]), dtype=dtype).masked_fill_(~reads(end), -30.0)
        future = torch.ones(mask.shape[1:], dtype=torch.bool).triu(1)
        return mask.masked_fill_(future, torch.finfo(dtype).min)[:, None]

    monkeypatch.setattr(passes, "_mask", leaking)
    batches = Batches(REQUESTS)
    batches.score(BY_NAME["llama"].model())
    assert batches.reading.layout is Layout.PADDED


def test_a_head_that_is_not_used_once_for_all_places_is_given_all_of_them():
    model, batches = BY_NAME["llama"].model(), Batches(REQUESTS)
    inner, head = model.model.forward, model.lm_head

    def twice(**how):  # as heads that also predict tokens further on are
        out = inner(**how)
        head(out.last_hidden_state)
        return out

    model.model.forward = twice
    for request, answer in zip(REQUESTS, batches.score(model), strict=True):
        assert answer.logprob == pytest.approx(plainly(model, request)[0], abs=3e-4)
    assert batches.reading.head is Head.COLUMNS


class Odd(torch.nn.Module):
    """Two tokens at once see each other, or nothing is the same twice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = BY_NAME["llama"].model(), how

    def forward(self, input_ids, use_cache=False, **rest):
        out = self.inner(input_ids=input_ids, use_cache=use_cache, **rest)
        if self.how == "by position":  # what stands behind the head is not the same everywhere
            out.logits = out.logits * torch.linspace(1, 2, 96)[: out.logits.shape[1], None]
        elif self.how == "by rows":
            out.logits = out.logits / len(input_ids)
        elif self.how == "random":
            out.logits = out.logits + torch.randn_like(out.logits)
        elif self.how == "no words":
            out.logits = out.logits[:, :1, :1]
        else:
            raise KeyError("pixel_values")
        return out

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()


@pytest.mark.parametrize(
    ("how", "layout", "head"),
    [("by position", Layout.PADDED, Head.ALL), ("by rows", Layout.ALONE, Head.PLACES)],
)
def test_what_stands_behind_the_head_or_between_rows_is_seen(how, layout, head):
    model, batches = Odd(how), Batches(REQUESTS)
    for request, answer in zip(REQUESTS, batches.score(model), strict=True):
        assert answer.logprob == pytest.approx(plainly(model, request)[0], abs=3e-4)
    assert (batches.reading.layout, batches.reading.head) == (layout, head)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("random", "other logits each time"),
        ("no words", "expected logits for each of"),
        ("image", "does not read tokens alone: KeyError"),
    ],
)
def test_a_model_that_is_no_language_model_is_refused_in_a_line(how, message):
    with pytest.raises(InputError, match=message):
        Batches(REQUESTS).score(Odd(how))


def test_logits_that_are_not_finite_are_never_a_score():
    model = BY_NAME["lfm2"].model()
    model.get_output_embeddings().weight[3] = float("nan")
    batches = Batches(REQUESTS)
    with pytest.raises(TaskError, match="not finite"):
        batches.score(model)
    assert batches.reading is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "jamba", "qwen3_next", "cpmant"])
@torch.inference_mode()
def test_a_narrow_model_is_read_in_float32_as_its_copy_would_be(name):
    model, wide = BY_NAME[name].model(torch.bfloat16), BY_NAME[name].model(torch.bfloat16).float()
    tokens = torch.tensor([PROMPTS[2], PROMPTS[2][::-1]])
    with in_single(model):
        found = model(input_ids=tokens, use_cache=False).logits
    wanted = wide(input_ids=tokens, use_cache=False).logits
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert not torch.allclose(model(input_ids=tokens, use_cache=False).logits.float(), wanted, atol=1e-4)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
