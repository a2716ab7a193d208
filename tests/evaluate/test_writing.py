from __future__ import annotations

import pytest
import torch

from sae_moo.errors import TaskError
from sae_moo.evaluate.task import Prompt
from sae_moo.evaluate.tasks import zoo_items
from sae_moo.evaluate.writing import TransformersWriter, Way
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool

MOST = 9


@pytest.fixture(scope="module")
def pool() -> ExpertPool:
    return ExpertPool({"base": Checkpoint("zoo:math")})


@pytest.fixture(scope="module")
def math_model(pool):
    return pool.live_model()


@pytest.fixture(scope="module")
def tokenizer(pool):
    return pool.tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[Prompt]:
    """Of several lengths; some end with a stop text, some with the model's end token, some with neither."""
    texts = [item.prompt for item in zoo_items("zoo_math")[0][:20]]
    made = [Prompt(tuple(tokenizer(text).input_ids), MOST, ("\n",)) for text in texts]
    made += [Prompt(each.context, MOST - 4, ()) for each in made[:3]]
    return made + [Prompt(each.context, MOST, (" 1", "2")) for each in made[3:6]]


@torch.no_grad()
def alone(model, tokenizer, request: Prompt) -> str:
    """One prompt, one token after another, everything read anew each time."""
    ids, ends = list(request.context), model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for _ in range(request.tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    text = tokenizer.decode(ids[len(request.context) :], skip_special_tokens=True)
    for stop in request.stops:
        text = text.split(stop)[0]
    return text


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_texts_are_those_of_each_prompt_alone(math_model, tokenizer, prompts, batch_tokens):
    written = TransformersWriter(prompts, tokenizer, batch_tokens=batch_tokens).write(math_model)
    assert written == [alone(math_model, tokenizer, prompt) for prompt in prompts]
    assert len({*written}) > 10


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2", "gemma2", "mistral", "olmo2", "phi3"])
def test_every_architecture(kind, tokenizer, prompts):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5, "head_dim": 8}
    small |= {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small)).eval()
    model.generation_config.eos_token_id = list(range(150))  # rows end one after another, whatever their padding
    prompts = [*prompts, *(Prompt(each.context[i % 5 + 1 :], MOST, each.stops) for i, each in enumerate(prompts))]
    written = TransformersWriter(prompts, tokenizer).write(model)
    assert written == [alone(model, tokenizer, prompt) for prompt in prompts]


def test_a_stop_text_ends_the_work(math_model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(math_model.generation_config, "eos_token_id", [511])  # it goes on and on
    context = prompts[0].context
    text = alone(math_model, tokenizer, Prompt(context, 40))
    stop = text[3]
    generations = TransformersWriter([Prompt(context, 40, (stop,))], tokenizer)
    (written,) = generations._decoded(math_model, generations.requests)
    assert stop in tokenizer.decode(written)
    assert stop not in tokenizer.decode(written[:-1])
    assert len(written) < 30
    assert generations.write(math_model) == [text[: text.find(stop)]]


def test_rows_that_have_ended_leave_the_batch(math_model, tokenizer, prompts, monkeypatch):
    alike = [prompt for prompt in prompts if prompt.stops == ("\n",)]
    writer, rows = TransformersWriter(alike, tokenizer), []
    writer.write(math_model)
    forward = type(math_model).forward

    def counting(self, input_ids, **rest):
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    counting.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(type(math_model), "forward", counting)
    writer.write(math_model)
    assert rows[0] == len(alike)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]


@pytest.mark.parametrize("way", [Way.PADDED, Way.ANEW])
def test_tokens_that_were_read_are_counted_without_padding(math_model, tokenizer, prompts, way, monkeypatch):
    writer, read = TransformersWriter(prompts, tokenizer, batch_tokens=200), []
    writer.write(math_model)
    writer.way, before, forward = way, writer.tokens, type(math_model).forward

    def counting(self, input_ids, attention_mask=None, **rest):
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        read.append(int(there.sum()))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **rest)

    counting.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(type(math_model), "forward", counting)
    writer.write(math_model)
    assert writer.tokens - before == sum(read) > 0
    assert way is Way.PADDED or sum(read) > 2 * before


def test_tokens_of_a_writer_with_a_penalty_end_with_each_text(math_model, tokenizer, prompts, monkeypatch):
    monkeypatch.setattr(math_model.generation_config, "repetition_penalty", 1.8)
    writer, lengths = TransformersWriter(prompts, tokenizer), []
    writer.write(math_model)
    for prompt in prompts:
        own = TransformersWriter([prompt], tokenizer)
        own.way = Way.EVEN
        (tokens,) = own._decoded(math_model, own.requests)
        lengths.append(len(prompt.context) + len(tokens) - 1)
    assert writer.tokens == sum(lengths)


def test_a_repetition_penalty_is_obeyed(math_model, tokenizer, prompts):
    settings = math_model.generation_config
    plain = TransformersWriter(prompts, tokenizer).write(math_model)
    settings.repetition_penalty = 1.8
    try:
        written = TransformersWriter(prompts, tokenizer).write(math_model)
        for prompt, text in zip(prompts, written, strict=True):
            ids = math_model.generate(
                torch.tensor([prompt.context]), max_new_tokens=prompt.tokens, do_sample=False, pad_token_id=0
            )
            expected = tokenizer.decode(ids[0, len(prompt.context) :], skip_special_tokens=True)
            for stop in prompt.stops:
                expected = expected.split(stop)[0]
            assert text == expected
    finally:
        settings.repetition_penalty = None
    assert written != plain


def test_too_large_a_batch_is_halved(math_model, tokenizer, prompts, monkeypatch, caplog):
    usual = TransformersWriter(prompts, tokenizer).write(math_model)
    decoded = TransformersWriter._decoded

    def small(self, model, requests):
        if len(requests) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decoded(self, model, requests)

    monkeypatch.setattr(TransformersWriter, "_decoded", small)
    generations = TransformersWriter(prompts, tokenizer)
    assert generations.write(math_model) == usual
    before = len(caplog.records)
    assert before > 0
    generations.write(math_model)
    assert len(caplog.records) == before, "it remembers"


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_recurrent_models_write_as_they_do_by_themselves(kind, tokenizer, prompts):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
    small |= {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.5}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small)).eval()
    few = [Prompt(each.context[i % 3 :], MOST, each.stops) for i, each in enumerate(prompts[:8])]
    assert TransformersWriter(few, tokenizer).write(model) == [alone(model, tokenizer, prompt) for prompt in few]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_logits_that_are_not_finite_are_an_error(pool, tokenizer, prompts, penalty):
    model = pool.live_model()
    model.generation_config.repetition_penalty = penalty
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TaskError, match="not finite while an answer is written"):
        TransformersWriter(prompts, tokenizer).write(model)


def test_nothing_asked(math_model, tokenizer):
    assert TransformersWriter([], tokenizer).write(math_model) == []
