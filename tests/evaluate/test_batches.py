from __future__ import annotations

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, Elsewhere

from sae_moo import zoo
from sae_moo.errors import TaskError
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.passes import Head, _one_sequence_a_row
from sae_moo.evaluate.reading import Layout, Reading
from sae_moo.evaluate.task import Request
from sae_moo.evaluate.tasks import encode, end_tokens, zoo_items
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Expert


@pytest.fixture(scope="module")
def math_model():
    return ExpertPool({"base": Checkpoint("zoo:math")}).live_model()


@pytest.fixture(scope="module")
def tokenizer():
    return ExpertPool({"base": Checkpoint("zoo:math")}).tokenizer()


@pytest.fixture(scope="module")
def requests(tokenizer):
    ends = end_tokens(tokenizer)
    return [
        encode(tokenizer, item.prompt, item.choices[0], ends) for name in zoo.TASKS for item in zoo_items(name)[0][:40]
    ]


@torch.no_grad()
def plainly(model, request: Request) -> tuple[float, bool]:
    """One request alone, in the most obvious way."""
    ids = torch.tensor([[*request.context, *request.continuation]])
    logprobs = model(ids).logits[0].float().log_softmax(-1)
    total, greedy = 0.0, True
    for i, token in enumerate(request.continuation, start=len(request.context)):
        total += logprobs[i - 1, token].item()
        greedy &= int(logprobs[i - 1].argmax()) == token
    if request.ends:
        greedy &= int(logprobs[-1].argmax()) in request.ends
    return total, greedy


def test_scores_are_those_of_each_request_alone(math_model, requests):
    answers = Batches(requests).score(math_model)
    for request, answer in zip(requests, answers, strict=True):
        total, greedy = plainly(math_model, request)
        assert answer.logprob == pytest.approx(total, abs=1e-4)
        assert answer.greedy == greedy
        assert answer.tokens == len(request.continuation)
    assert 10 < sum(answer.greedy for answer in answers) < 110, "both outcomes occur"


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_a_score_does_not_depend_on_its_batch(math_model, requests, batch_tokens):
    usual = Batches(requests).score(math_model)
    order = np.random.default_rng(0).permutation(len(requests))
    other = Batches([requests[i] for i in order], batch_tokens=batch_tokens).score(math_model)
    for i, answer in zip(order, other, strict=True):
        assert answer.logprob == pytest.approx(usual[i].logprob, abs=1e-4)
        assert answer.greedy == usual[i].greedy


@pytest.mark.parametrize("batch_tokens", [64, 1024, 100_000])
def test_tokens_that_rows_share_count_once_and_those_not_read_never(math_model, batch_tokens):
    prompt = tuple(range(3, 15))
    batches = Batches(
        [Request(prompt, (20, 21, 22)), Request(prompt, (20, 23)), Request(prompt, (24,)), Request((5, 6), (7, 8, 9))],
        batch_tokens=batch_tokens,
    )
    batches.score(math_model)
    once = 12 + 2 + (2 + 2)  # the prompt, then 20 and 21; of every answer the last token is not read
    assert batches.tokens == once
    batches.score(math_model)
    assert batches.tokens == 2 * once


def test_one_forward_pass_says_what_generation_would(math_model, tokenizer, requests):
    ends = end_tokens(tokenizer)
    for request, answer in zip(requests, Batches(requests).score(math_model), strict=True):
        written = math_model.generate(
            torch.tensor([request.context]),
            max_new_tokens=len(request.continuation) + 1,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=0,
        )[0, len(request.context) :].tolist()
        exact = tuple(written[:-1]) == request.continuation and written[-1] in ends
        assert answer.greedy == exact


def test_only_tokens_of_a_requests_own_set_end_it(math_model, requests):
    """Sets of ends lie in one table on the device; ids that no set holds, and those beyond the model's, end nothing."""
    vocabulary = math_model.config.vocab_size
    logits = math_model(torch.tensor([requests[0].context])).logits[0, -1]
    best = int(logits.argmax())
    long = Request(requests[0].context, (best,))
    after = int(math_model(torch.tensor([[*long.context, best]])).logits[0, -1].argmax())
    sets = [(), (after,), (vocabulary + 7, after), (vocabulary + 7,), ((after + 1) % vocabulary,)]
    answers = Batches([Request(long.context, (best,), ends) for ends in sets]).score(math_model)
    assert [answer.greedy for answer in answers] == [True, True, True, False, False]
    for end in [after - 1, *(end for end in range(after) if after % (end + 2) == end)][:3]:
        (answer,) = Batches([Request(long.context, (best,), (end,))]).score(math_model)
        assert not answer.greedy, "higher ids than any set's are none of them"


@pytest.mark.parametrize("tokens", [64, 4096])
def test_choices_that_share_rows_are_fetched_once_elsewhere(tokens):
    with Elsewhere() as elsewhere:
        model = elsewhere.moved(random_model("llama"))
        batches = Batches(CHOICES, DEVICE, batch_tokens=tokens)
        batches.score(model)
        elsewhere.waits.clear()
        elsewhere.sends.clear()
        answers = batches.score(model)
    assert batches.reading.layout is Layout.SHARED
    assert len(batches._batches[0]) == (5 if tokens == 64 else 1)
    assert elsewhere.waits.total() == 1
    assert not elsewhere.sends
    assert answers == Batches(CHOICES, batch_tokens=tokens).score(random_model("llama"))


@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_transformers_is_left_as_it_was(device):
    """While a pass runs elsewhere it does not look for sequences that share rows; afterwards it does."""
    from transformers import masking_utils

    looks, packed = masking_utils.find_packed_sequence_indices, torch.tensor([[0, 1, 0, 1]])

    def interrupted():
        with _one_sequence_a_row(torch.device(device)):
            assert (masking_utils.find_packed_sequence_indices(packed) is None) == (device != "cpu")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert masking_utils.find_packed_sequence_indices is looks


def test_requests_that_read_the_same_tokens_share_a_row(math_model, tokenizer):
    context = encode(tokenizer, "3 and 4 is", " 7").context
    choices = [Request(context, (5, last)) for last in range(10, 20)]
    batches = Batches(choices)
    assert sum(len(batch.inputs) for batch in batches._batches[0]) == 1
    for request, answer in zip(choices, batches.score(math_model), strict=True):
        assert answer.logprob == pytest.approx(plainly(math_model, request)[0], abs=1e-4)


PROMPTS = [tuple(np.random.default_rng(i).integers(3, 60, 20 + i).tolist()) for i in range(6)]
CHOICES = [Request(p, (3 + c, 4 + i, *([5] * c))) for i, p in enumerate(PROMPTS) for c in range(4)]
LIKE = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral, window": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "granite": {"logits_scaling": 3.0},
    "gpt_neox": {},
    "gpt2": {},
    "bloom": {},
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "head_dim": 8},
}
ONE_BY_ONE = {"mistral, window", "gemma3_text", "bloom", "mamba", "falcon_h1"}


def random_model(kind: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5, **LIKE[kind], **changes}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.split(",")[0], **small)).eval()


@pytest.mark.parametrize("kind", ["mistral, window", "gemma2", "gemma3_text"])
def test_a_window_that_only_long_prompts_exceed_is_seen(kind):
    model = random_model(kind, sliding_window=40)
    long = tuple(np.random.default_rng(9).integers(3, 60, 60).tolist())
    batches = Batches([*CHOICES, *(Request(long, (3 + c, 4)) for c in range(4))])
    for request, answer in zip(batches.requests, batches.score(model), strict=True):
        assert answer.logprob == pytest.approx(plainly(model, request)[0], abs=2e-3)
    assert batches.reading.layout is Layout.PADDED
    assert Batches(CHOICES).score(model)[0].logprob == pytest.approx(plainly(model, CHOICES[0])[0], abs=2e-3)


@pytest.mark.parametrize("kind", LIKE)
def test_what_begins_alike_is_read_once_where_the_architecture_allows_it(kind):
    model = random_model(kind)
    batches = Batches([*CHOICES, Request(PROMPTS[0][1:], (3, 4))])
    answers = batches.score(model)
    for request, answer in zip(batches.requests, answers, strict=True):
        total, greedy = plainly(model, request)
        assert answer.logprob == pytest.approx(total, abs=2e-3)
        assert answer.greedy == greedy
    assert batches.reading == Reading(Layout.PADDED if kind in ONE_BY_ONE else Layout.SHARED, Head.PLACES)
    read = sum(batch.inputs.numel() for batch in batches._batches[0])
    assert (read < 400) == (kind not in ONE_BY_ONE)


def test_a_model_without_finite_answers_teaches_nothing(tiny, tiny_model):
    batches = Batches(CHOICES)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(TaskError):
        batches.score(tiny_model)
    assert batches.reading is None
    materialize(Expert("math"), tiny, tiny_model)
    batches.score(tiny_model)
    assert batches.reading == Reading(Layout.SHARED, Head.PLACES)


def test_too_large_a_pass_is_halved_and_the_next_ones_too(math_model, requests, monkeypatch, caplog):
    batches, passes = Batches(requests, batch_tokens=2048), []
    usual = Batches(requests).score(math_model)
    logits = Batches._logits

    def small(self, model, batch, head):
        passes.append(batch.inputs.numel())
        if batch.inputs.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, model, batch, head)

    monkeypatch.setattr(Batches, "_logits", small)
    answers = batches.score(math_model)
    assert [answer.greedy for answer in answers] == [answer.greedy for answer in usual]
    assert batches.batch_tokens <= 300
    assert "forward passes of at most 247 tokens" in caplog.text
    passes.clear()
    batches.score(math_model)
    assert max(passes) <= 300, "it remembers"


def test_one_row_too_large_for_memory_is_an_error(math_model, requests, monkeypatch):
    def full(self, model, batch, head):
        raise MemoryError

    monkeypatch.setattr(Batches, "_logits", full)
    with pytest.raises(MemoryError):
        Batches(requests[:5]).score(math_model)


@pytest.mark.parametrize("requests_", [[], [Request((1,), (2,))]])
def test_small_sizes(math_model, requests_):
    assert len(Batches(requests_).score(math_model)) == len(requests_)


def test_models_without_sliced_logits(math_model, requests):
    class Whole:
        def forward(self, input_ids, use_cache):
            raise NotImplementedError

        def __call__(self, input_ids, use_cache):
            return math_model(input_ids=input_ids, use_cache=use_cache)

    assert Batches(requests).score(Whole()) == pytest.approx(Batches(requests).score(math_model))


def test_task_errors_name_the_request(tiny, tiny_model):
    with torch.no_grad():
        next(tiny_model.parameters()).fill_(float("nan"))
    with pytest.raises(TaskError, match="not finite for 2 requests, the first is 0"):
        Batches([Request((1,), (2,)), Request((1, 3), (2,))]).score(tiny_model)
