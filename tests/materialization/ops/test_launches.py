"""What launches on a device hang on beside their kernels: ranges of a search, addresses, dtypes and limits that differ."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: no kernels for a GPU")

import test_device as band
import triton
import triton.language as tl
from test_device import BF16, CARD, F16, F32, alike, both, engines, same

from sae_moo.experts.memory import Remembered
from sae_moo.experts.pool import TensorInfo
from sae_moo.materialization import thresholds
from sae_moo.materialization.merging import Given, Merging
from sae_moo.materialization.ops.deferred import restored
from sae_moo.materialization.ops.device import cuts as searching
from sae_moo.materialization.ops.device import sums
from sae_moo.materialization.ops.device.engine import POWERS, Banded, _digits
from sae_moo.materialization.ops.device.kernels.elementwise import draw
from sae_moo.materialization.ops.device.tables import Card
from sae_moo.materialization.ops.engine import Asked, OneByOne, Sought
from sae_moo.materialization.ops.jobs import Pruned, Stepped, Without
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.prune import Grid, Scoring, activated, magnitude
from sae_moo.materialization.ops.questions import Fences, Gram, Overlaps, Selection, Trim, rounded
from sae_moo.materialization.ops.random import Draws, threshold
from sae_moo.materialization.ops.select import Cut
from sae_moo.materialization.ops.steps import Combination, Selected, Spliced, Thinning, Vote, ZeroAware
from sae_moo.recipe import Expert, Merge

pytestmark = band.pytestmark
plain = band.plain


def drawn(*size, seed=3):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def halves(tensors, engine):
    """Jobs that prune a third of each tensor."""
    sought = [Sought(Scoring(x, Grid((len(x), 1))), len(x) // 3, None) for x in tensors]
    return [Pruned(each.scoring.source, cut) for each, cut in zip(sought, engine.cuts(sought), strict=True)]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(
    ("low", "shift"),
    [(0x7F000000, 0), (0, 0), (0x7F000000, 20), (0x30000000, 3)],
    ids=["above it", "below it", "wide and above it", "narrow and below it"],
)
def test_a_range_in_which_the_cut_is_not_costs_rounds_and_no_bit(low, shift, dtype, monkeypatch):
    begin, units = searching.Search.begin, []

    def misled(search):
        begin(search)
        search.states[:, 0] = low >> int(search.states[0, 6])
        search.states[:, 1] = shift
        units.append(search)

    monkeypatch.setattr(searching.Search, "begin", misled)
    same(both(halves, [drawn(700).to(dtype), (drawn(40) * 1e4).to(dtype), torch.zeros(30, dtype=dtype)], dtype))
    assert all(search.found for search in units)


def rounds_until_found(search, tensors):
    for number in range(1, searching.ROUNDS + 1):
        shown = search.shown(tensors, range(len(tensors)))
        search.tally(shown)
        search.advance()
        if search.found:
            return number
    return None


def test_a_sample_leaves_few_rounds_and_known_scores_one():
    apart = torch.randperm(9000, generator=torch.Generator().manual_seed(1)) * 900  # in keys: three lie in one range
    tensors = [drawn(20_000), 1 + apart * 2**-23]
    tensors = [searching.Scored(x.to(CARD.device)) for x in tensors]
    sizes = [each.source.numel() for each in tensors]
    for share in (0.01, 0.5, 0.93):
        counts = [int(share * size) for size in sizes]
        search = searching.Search(CARD, sizes, counts, 0)
        search.sample(tensors, range(2))
        search.begin()
        assert rounds_until_found(search, tensors) <= (2 if share == 0.5 else 3)  # at the ends ranges are wide
        search = searching.Search(CARD, sizes[1:], counts[1:], 0)
        search.begin_between([searching.quantiles_of(tensors[1])])
        assert rounds_until_found(search, tensors[1:]) == 1


@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_tensors_of_any_dtypes_compete_with_each_other(kind):
    made = [drawn(size, seed=i) for i, size in enumerate((600, 3, 700, 40, 513, 64))]
    if kind == "ties":
        made = [(x * 2).round() / 2 for x in made]
    made = [x.to(dtype).to(CARD.device) for x, dtype in zip(made, (F32, BF16, F16, BF16, F32, BF16), strict=True)]
    prunable = [TensorInfo(f"w{i}", tuple(x.shape), i % 2, True) for i, x in enumerate(made)]
    units = {5: [0, 1, 4], 2: [2, 3, 5]}
    asked = {5: 420, 2: 333}

    def bands():
        for at in ((0, 1, 2), (3, 4, 5)):
            yield [prunable[i] for i in at], [Scoring(made[i], Grid((len(made[i]), 1))) for i in at]

    counts, cuts = thresholds.counts(engines()[0], bands, prunable, units, asked)
    for unit, members in units.items():
        scores = torch.cat([made[i].float().abs() for i in members])
        gone = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        gone[scores.argsort(stable=True)[: asked[unit]]] = True
        for i, mine in zip(members, gone.split([len(made[i]) for i in members]), strict=True):
            assert counts[i] == int(mine.sum())
            if f"w{i}" in cuts:
                assert torch.equal(cuts[f"w{i}"].below(made[i].float().abs(), 0), mine)
    assert len(cuts) >= len(made) - len(units)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_a_nan_stays_one_whatever_its_bits(dtype):
    bits = torch.tensor(
        [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, 0x7F80FFFF, 0x7F7FFFFF, 0x7F800000, 1], dtype=torch.int64
    )
    source = bits.to(torch.int32).view(F32).to(CARD.device)
    out = torch.zeros(len(bits), dtype=dtype, device=CARD.device)
    engines()[0].write([(Pruned(source), out)])
    assert alike(out.cpu(), source.to(dtype).cpu())
    assert out.isnan().tolist() == [True] * 5 + [False] * 3


DRAWS = [Draws.of(5, "w", name) for name in "abc"]
THINNED = {
    "limits of one": (Thinning(), Thinning(above=Cut(0.3, 4), under=Cut(1.2, 9)), Thinning(above=Cut(0.5, 0))),
    "chances of one": (Thinning(), Thinning(stream=DRAWS[1], drop=threshold(0.4)), Thinning(under=Cut(1.0, 3))),
    "ranks of one": (
        Thinning(stream=DRAWS[0], epsilon=0.1, density=0.5),
        Thinning(stream=DRAWS[1], drop=threshold(0.4)),
        Thinning(under=Cut(1.0, 3)),
    ),
}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("kind", THINNED)
def test_each_input_of_a_vote_has_limits_of_its_own(kind):
    def jobs(tensors, engine):
        for x in tensors:
            inputs = tuple(x[1:].reshape(3, -1))
            operands = Operands(inputs, x[0].flatten(), (5, 12), (None,) * 3, ("a", "b", "c"))
            yield Stepped(Vote(THINNED[kind], (1.0, 2.0, 0.7), (0.5, 0.3, 0.2), 0.9, True, True, 12), operands)

    tensors = [drawn(4, 60, seed=i) for i in range(2)]
    tensors[1][1, 7] = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(F32)  # the NaN that a GPU makes
    results = []
    for engine in engines():
        there = [x.to(band.device_of(engine)) for x in tensors]
        outs = [torch.full((60,), 7.0, device=x.device) for x in there]
        zeros = engine.write(list(zip(jobs(there, engine), outs, strict=True)))
        engine.settle()
        results.append(([out.cpu() for out in outs], list(zeros.counts)))
    (found, zeros), (wanted, counted) = results
    assert all(alike(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert zeros == counted


@triton.jit
def _numbers(at, found, first, second, COUNT: tl.constexpr):
    span = tl.arange(0, COUNT)
    tl.store(found + span, draw(tl.load(at + span), first.to(tl.int64), second.to(tl.int64)))


def test_random_numbers_of_a_place_are_the_same_beyond_32_bits():
    for start in (0, (1 << 32) - 8, (5 << 32) + 3):
        stream = DRAWS[0]
        found = CARD.zeros(16)
        at = torch.arange(start, start + 16, device=CARD.device)
        CARD.launch(_numbers, 1, at, found, *stream.keys, COUNT=16)
        assert found.tolist() == stream.draw(start, 16).tolist()


def test_sums_are_rounded_on_the_device_as_on_the_host():
    values = torch.cat([drawn(200).double().abs() * 10.0**k + 1 for k in range(12)])
    assert _digits(values, torch.from_numpy(POWERS)).tolist() == [rounded(value) for value in values.tolist()]


class Watched(Card):
    """A card that remembers which launches were told that their operands are aligned."""

    def __init__(self):
        super().__init__(CARD.device, tile=512)
        self.told = []

    def launch(self, kernel, programs, *given, **constants):
        if "ALIGNED" in constants:
            self.told.append(constants["ALIGNED"])
        super().launch(kernel, programs, *given, **constants)


def unaligned(x):
    held = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    held[1:] = x
    return held[1:]


@pytest.mark.parametrize("odd", ["none", "base", "input", "out"])
def test_one_odd_address_and_nothing_is_read_many_elements_at_once(odd):
    def tensor(role, job, seed):
        made = drawn(90, seed=seed).to(CARD.device)
        return unaligned(made) if role == odd and job == 1 else made

    card = Watched()
    engine = Banded(card, Remembered(), lambda size: False)
    vote = Vote((Thinning(),) * 2, (1.0, 1.0), (0.5, 0.5), 1.0, True, True)
    steps = [vote, Combination(1, 1.0, (0,), (0.5,)), ZeroAware((0.5, 0.5), 1.3, True), Selected(None, (0.5, 0.5), 1.0)]
    for step in steps:
        card.told.clear()
        work = []
        for job in range(2):
            inputs = tensor("other", job, 1), tensor("input", job, 2)
            operands = Operands(inputs, tensor("base", job, 0), (9, 10), (None, None), ("a", "b"))
            work.append((Stepped(step, operands), tensor("out", job, 3)))
        engine.write(work)
        read = odd != "base" or not isinstance(step, Combination)
        assert card.told == [odd == "none" or not read]
    card.told.clear()
    sources = [tensor("input", job, 4) for job in range(2)]
    jobs = halves(sources, engine)
    without = [Without(x, (9, 10), 0, torch.tensor([1], device=x.device)) for x in sources]
    engine.factors(jobs)
    sums.products(card, [(Operands((x, x), None, (90,), (None, None), ("a", "b")), False) for x in sources])
    assert len(card.told) > 5
    assert set(card.told) == {odd != "input"}
    card.told.clear()
    engine.write([(job, tensor("out", i % 2, 5)) for i, job in enumerate((*jobs, *without))])
    assert set(card.told) == {odd in ("none", "base")}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_what_is_known_of_an_expert_answers_every_count_and_every_score(dtype):
    matrix = drawn(20, 30).to(dtype)
    norms = torch.arange(30) % 5 * 0.25
    remembered = engines()[0]._remembered
    for count in (300, 100, 300):
        for kind in ("magnitude", "weighed", "difference"):
            found = []
            for engine in (Banded(CARD, remembered, lambda size: True), OneByOne(Remembered())):
                x = matrix.flatten().to(band.device_of(engine))
                if kind == "difference":
                    operands = Operands((x,), torch.full_like(x, 0.5), (20, 30), ("math",), ("a",))
                    place = Place("w", True, {}, 0, 600, Remembered())
                    (cut,) = engine.answers([Asked(Trim(0, count), operands, place, "who")])
                else:
                    norm = None if kind == "magnitude" else norms.to(x.device)
                    scoring = Scoring(x, Grid((20, 30)), magnitude if norm is None else activated, norm)
                    (cut,) = engine.cuts([Sought(scoring, count, (kind, "w", "math"))])
                engine.settle()
                found.append(restored(cut))
            assert found[0] == found[1], (count, kind)


@pytest.mark.usefixtures("plain")
def test_experts_for_which_there_is_room_and_those_for_which_there_is_none():
    tensors = [drawn(size, seed=size).to(dtype) for size in (50, 700, 40, 513) for dtype in (BF16, F32)]
    answers = iter([True, False] * 8)

    def jobs(tensors, engine):
        sought = [Sought(Scoring(x, Grid((len(x), 1))), len(x) // 2, ("expert", i)) for i, x in enumerate(tensors)]
        return [Pruned(each.scoring.source, cut) for each, cut in zip(sought, engine.cuts(sought), strict=True)]

    same(both(jobs, tensors, BF16, (Banded(CARD, Remembered(), lambda size: next(answers)), engines()[1])))


def test_zeros_are_counted_for_their_tensor_where_a_step_is_written_in_two_parts():
    half = Combination(0, 0.0, (), ())
    x = drawn(60).to(CARD.device)
    operands = Operands((x, x), None, (60,), (None, None), ("a", "b"))
    work = [(Pruned(x), torch.zeros_like(x)), (Stepped(Spliced(half, half, 25), operands), torch.zeros_like(x))]
    engine = engines()[0]
    zeros = engine.write(work)
    engine.settle()
    assert list(zeros.counts) == [0, 60]


def test_a_step_that_looks_at_the_tensor_is_made_for_each():
    made = []

    def looking(x, weights, place):
        made.append(place.tensor)
        return Combination(0, float(x.inputs[0].sum()), (), ())

    work = Merging.of(Merge("linear", (Expert("a"), Expert("b")), (0.5, 0.5)))
    work = dataclasses.replace(work, method=SimpleNamespace(function=looking, weighted_sum=False, guest=None))
    given = Given([0.5, 0.5], {}, False)
    for name in ("w0", "w1"):
        x = Operands((drawn(4), drawn(4)), None, (4,), (None, None), ("a", "b"))
        work.begun(given, x, Place(name, True, {}, 0, 4, Remembered()))
    assert made == ["w0", "w1"]


def test_what_is_remembered_of_experts_goes_by_tensor_experts_and_question():
    x = drawn(4)
    questions = [
        Gram(True),
        Gram(False),
        Trim(0, 1),
        Trim(0, 2),
        Selection(0.5),
        Selection(0.6),
        Overlaps(0.1),
        Fences(),
    ]
    keys = []
    for names in (("a", "b"), ("c", "b")):
        for tensor in ("w0", "w1"):
            place = Place(tensor, True, {}, 0, 4, Remembered())
            keys += [each.key(Operands((x, x), x, (4,), names, ("a", "b")), place) for each in questions]
    assert len(set(keys)) == len(keys)
    computed = Operands((x, x), x, (4,), (None, None), ("a", "b"))
    assert {each.key(computed, place) for each in questions} == {None}
