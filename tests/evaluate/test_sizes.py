"""How many tokens are computed at once is measured where a device tells what work takes, here with a pretended one."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch

from sae_moo.errors import TaskError
from sae_moo.evaluate import sizes as module
from sae_moo.evaluate.batches import Batches
from sae_moo.evaluate.hardware import PASSES, TEXTS, Cost, TokensAtOnce
from sae_moo.evaluate.sizes import BatchSizes, Work, fastest, fitting
from sae_moo.evaluate.task import Prompt, Request
from sae_moo.evaluate.writing import TransformersWriter
from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.pool import ExpertPool

KIND = TokensAtOnce("things", cpu=1, elsewhere=2, least=1024, most=65_536)
GIB = 2**30


class Pretended:
    """A device whose clock and memory are made up.

    Args:
        micros: size -> microseconds a token.
        bytes_: a token takes.
        room: bytes that are free.
        breaks: size from which on memory runs out.
        warm: size -> how many times as long a first time takes.
    """

    def __init__(self, micros=lambda size: 1.0, bytes_=1000, room=GIB, breaks=float("inf"), warm=lambda size: 3):
        self.warm = warm
        self.micros, self.bytes_, self.room, self.breaks = micros, bytes_, room, breaks
        self.size, self.tokens = 0, 0
        self.tried, self.seconds, self.tidied = [], 0.0, 0

    def work(self, size, *, whole=1_000_000):
        """Two passes of so many tokens each, of a whole of so many."""

        def run():
            self.size, self.tokens = size, 2 * size

        return Work(run, 2 * size, min(size, whole), -(-whole // size))

    def free(self):
        return self.room

    def cost(self, run):
        run()
        self.tried.append(self.size)
        if self.size >= self.breaks:
            raise torch.OutOfMemoryError("CUDA out of memory")
        warm = 1 if self.tried.count(self.size) > 1 else self.warm(self.size)
        taken = warm * self.micros(self.size) * self.tokens / 1e6
        self.seconds += taken
        return Cost(taken, self.size * self.bytes_)

    def tidy(self):
        self.tidied += 1


@pytest.mark.parametrize(
    ("micros", "best", "last"),
    [
        ({1024: 8, 2048: 6, 4096: 5, 8192: 4.9, 16384: 5.2}, 4096, 16384),  # 2 % are not worth twice the memory
        ({1024: 8, 2048: 7.9, 4096: 7.7, 8192: 7.6, 16384: 9}, 4096, 16384),  # small gains add up
        ({1024: 8, 2048: 9}, 1024, 2048),
        ({1024: 8, 2048: 8}, 1024, 65536),
        ({1024: 8, 2048: 4, 4096: 2, 8192: 1, 16384: 0.5, 32768: 0.25, 65536: 0.125}, 65536, 65536),
    ],
)
def test_the_fastest_a_token_is_taken_the_smaller_one_of_two_alike(micros, best, last):
    meter = Pretended(lambda size: micros.get(size, 8) / 10)
    assert fastest(meter.work, KIND, meter) == best
    assert max(meter.tried) == last, "no further once it is slower, or at the most"
    assert meter.tried.count(1024) == 1 + module.TIMED
    assert meter.tidied == 1


def test_a_first_time_does_not_count():
    """A device that was not used yet begins slowly: the first size would lose by it."""
    meter = Pretended(warm=lambda size: 100 if size == 1024 else 1)
    assert fastest(meter.work, KIND, meter) == 1024


def test_no_more_memory_is_tried_than_a_share_of_what_is_free():
    meter = Pretended(lambda size: 1 / size, bytes_=1000, room=9_000_000)
    assert fastest(meter.work, KIND, meter) == 4096
    assert max(meter.tried) * 1000 <= module.SHARE * 9_000_000 < 2 * max(meter.tried) * 1000


@pytest.mark.parametrize("micros", [1, 10, 50, 120, 200, 240, 1000, 10_000])
@pytest.mark.parametrize("warm", [1, 3])
def test_no_more_time_is_tried_than_a_few_seconds(micros, warm):
    meter = Pretended(lambda size: micros * 1000 / size, warm=lambda size: warm)
    best = fastest(meter.work, KIND, meter)
    once = warm * micros * 2000 / 1e6
    assert meter.seconds <= max(module.SECONDS, once)
    assert best == max(meter.tried) if meter.seconds < once else KIND.least


def test_what_takes_too_long_even_once_is_not_measured():
    meter = Pretended(lambda size: 1000.0)
    assert fastest(meter.work, KIND, meter) == KIND.least
    assert meter.tried == [KIND.least]


def test_where_memory_runs_out_the_best_below_is_taken(caplog):
    meter = Pretended(lambda size: 1 / size, bytes_=0, breaks=8192)
    assert fastest(meter.work, KIND, meter) == 4096
    assert meter.tried.count(8192) == 1


@pytest.mark.parametrize(("breaks", "best"), [(1024, 512), (600, 512), (512, 256), (1, 1)])
def test_where_even_the_least_does_not_fit_it_is_halved_and_nothing_larger_tried(breaks, best, caplog):
    meter = Pretended(lambda size: 1 / size, bytes_=0, breaks=breaks)
    assert fastest(meter.work, KIND, meter) == best
    assert max(meter.tried) == KIND.least
    assert f"out of memory: things of at most {best} tokens" in caplog.text


def test_sizes_that_put_nothing_more_together_are_not_tried():
    meter = Pretended(lambda size: 1 / size, bytes_=0)
    assert fastest(lambda size: meter.work(size, whole=5000), KIND, meter) == 8192
    assert max(meter.tried) == 8192


def test_other_errors_are_not_about_memory():
    meter = Pretended()

    def broken():
        raise TaskError("no")

    with pytest.raises(TaskError):
        fastest(lambda size: Work(broken, 1, 1, 1), KIND, meter)


@pytest.mark.parametrize(
    ("room", "best"), [(0, 1024), (4_000_000, 1024), (10_000_000, 4096), (33_000_000, 16384), (GIB, 65536)]
)
def test_texts_take_the_power_of_two_that_fits(room, best):
    meter = Pretended(bytes_=2000, room=room)
    assert fitting(meter.work(512).run, 1024, KIND, meter) == best


def test_on_a_cpu_and_where_nothing_is_told_of_memory_the_rule_stays():
    assert BatchSizes("cpu").of(PASSES) == PASSES.cpu
    assert BatchSizes("meta").of(TEXTS) == TEXTS.elsewhere
    assert BatchSizes("meta", meter=Pretended()).of(TEXTS) is None
    assert BatchSizes("meta", meter=Pretended()).first(TEXTS) == TEXTS.least
    assert BatchSizes("cpu", {PASSES.what: 7}).first(PASSES) == 7


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sae_moo" / module.KIND


def test_a_machine_chooses_once_for_the_same_models_and_tasks(cache):
    told = []
    first = BatchSizes("meta", meter=Pretended(), name="one", tell=lambda chosen: told.append(dict(chosen)))
    first.choose(PASSES, 4096)
    assert told == [{"forward passes": 4096}]
    assert first.halve(PASSES, 4096, 3000) == first.of(PASSES) == 1500, "memory that others hold may be free again"
    again = BatchSizes("meta", meter=Pretended(), name="one", tell=lambda chosen: told.append(dict(chosen)))
    assert again.chosen == {"forward passes": 4096} == told[-1]
    assert BatchSizes("meta", meter=Pretended(), name="two").chosen == {}
    assert BatchSizes("cpu", name="one").chosen == {}, "the rule stays"
    assert BatchSizes("meta", {"forward passes": 64}, meter=Pretended(), name="one").of(PASSES) == 64


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"forward passes": 0}', '{"forward passes": "8"}', "[" * 100_000])
def test_a_damaged_choice_is_made_again(cache, text):
    cache.mkdir(parents=True)
    (cache / "one").write_text(text)
    assert BatchSizes("meta", meter=Pretended(), name="one").of(PASSES) is None


def test_a_study_that_goes_on_with_less_says_so(caplog):
    caplog.set_level(logging.WARNING)
    BatchSizes("cpu").halve(PASSES, 100, 100)
    assert "this study" not in caplog.text
    BatchSizes("cpu", {PASSES.what: 100}).halve(PASSES, 100, 100)
    assert "what this study scored before was computed with 100" in caplog.text


@pytest.fixture(scope="module")
def pool():
    return ExpertPool({"base": Checkpoint("zoo:math")})


@pytest.fixture(scope="module")
def model(pool):
    return pool.live_model()


@pytest.fixture(scope="module")
def requests():
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, 60, 12 + i % 9).tolist()) for i in range(200)]
    return [Request(prompt, (3 + c, 9)) for prompt in prompts for c in range(2)]


class Clock(Pretended):
    """Looks at what a model really reads."""

    def __init__(self, **how):
        super().__init__(**how)
        self.reads = []

    def cost(self, run):
        self.reads.clear()
        run()
        self.size, self.tokens = max(self.reads), sum(self.reads)
        return super().cost(lambda: None)

    def watch(self, model):
        seen = lambda _, __, how, ___: self.reads.append(how["input_ids"].numel())  # noqa: E731
        return model.register_forward_hook(seen, with_kwargs=True)


def test_a_size_is_measured_on_passes_of_the_task_once_for_all_that_is_asked(model, requests):
    clock, told = Clock(micros=lambda size: 1.0 if size < 3000 else 9.0), []
    sizes = BatchSizes("cpu", meter=clock, tell=lambda chosen: told.append(dict(chosen)))
    batches = Batches(requests, sizes=sizes)
    usual = Batches(requests, batch_tokens=2048).score(model)
    hook = clock.watch(model)
    answers = batches.score(model)
    assert batches.batch_tokens == 2048
    assert told == [{"forward passes": 2048}]
    assert {size > 2048 for size in clock.tried} == {False, True}, "larger passes were tried, and slower"
    assert answers == usual, "to the last digit what another run gives that is told the size"
    clock.tried.clear()
    clock.reads.clear()
    batches.score(model)
    assert 1000 < max(clock.reads) <= 2048, "and are not taken"
    other = Batches(requests[:50], sizes=sizes)
    other.score(model)
    hook.remove()
    assert not clock.tried
    assert other.batch_tokens == 2048


def test_a_larger_size_is_laid_out_if_it_is_faster(model, requests):
    clock = Clock(micros=lambda size: 1000 / size)
    batches = Batches(requests, sizes=BatchSizes("cpu", meter=clock))
    hook = clock.watch(model)
    batches.score(model)
    hook.remove()
    assert batches.batch_tokens == 8192
    assert clock.tried[-1] < 4600, "a larger one puts nothing more together"
    assert len(batches._batches[0]) == 1


def test_a_model_without_finite_answers_is_not_measured(pool, requests):
    broken, clock = pool.live_model(), Clock()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    batches = Batches(requests, sizes=BatchSizes("cpu", meter=clock))
    with pytest.raises(TaskError):
        batches.score(broken)
    assert not clock.tried


def test_texts_are_measured_once_and_stay_the_same(pool, model, requests):
    tokenizer, clock = pool.tokenizer(), Clock(bytes_=1000, room=100_000_000)
    prompts = [Prompt(request.context, 6, ("\n",)) for request in requests[:60:2]]
    writer = TransformersWriter(prompts, tokenizer, sizes=BatchSizes("cpu", meter=clock))
    hook = clock.watch(model)
    written = writer.write(model)
    measured = len(clock.tried)
    assert writer.write(model) == written == TransformersWriter(prompts, tokenizer).write(model)
    hook.remove()
    assert measured == len(clock.tried) == 1
    assert writer.batch_tokens == 32_768
    assert TransformersWriter(prompts, tokenizer, sizes=writer._sizes).batch_tokens == 32_768


def test_texts_without_room_for_the_least_are_halved(pool, model, requests):
    prompts = [Prompt(request.context, 6) for request in requests[:60:2]]
    writer = TransformersWriter(prompts, pool.tokenizer(), sizes=BatchSizes("cpu", meter=Clock(breaks=0)))
    hook = writer._sizes.meter.watch(model)
    assert len(writer.write(model)) == len(prompts)
    hook.remove()
    assert writer.batch_tokens == len(prompts) * (20 + 3) // 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_measured_and_waited_for_once_a_part(pool, requests):
    model = pool.live_model(torch.bfloat16, "cuda")
    batches = Batches(requests, "cuda")
    first = batches.score(model)
    assert PASSES.least <= batches.batch_tokens <= PASSES.most
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            assert batches.score(model) == first
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(warning.message) for warning in told) == 1
    again = Batches(requests, "cuda", batches.batch_tokens)
    assert again.score(model) == first, "a run that is told the size gives the same bits"
