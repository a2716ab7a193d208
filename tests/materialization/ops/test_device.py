"""Kernels for a GPU, run by Triton's interpreter on the CPU: the bits of the plain path."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: no kernels for a GPU")

import test_merge as merging

from sae_moo.errors import WeightsError
from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.deferred import NumberRef, Numbers
from sae_moo.materialization.ops.device import cuts, tables
from sae_moo.materialization.ops.device.cuts import Scored, Search
from sae_moo.materialization.ops.device.engine import Banded
from sae_moo.materialization.ops.device.tables import Card
from sae_moo.materialization.ops.engine import PENDING, Asked, OneByOne, Sought
from sae_moo.materialization.ops.jobs import Lines, Pruned, Stepped, Without
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.prune import Grid, Scoring, activated, magnitude
from sae_moo.materialization.ops.questions import Trim
from sae_moo.materialization.ops.select import Cut
from sae_moo.materialization.ops.steps import Thinning, Vote
from sae_moo.recipe.methods import METHODS
from sae_moo.testing import experts

# numpy, which interprets the kernels, warns of what a GPU says nothing about: infinities less themselves
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),  # there the card itself runs them
]
CARD = Card(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tile=512)
NOT_OF_NAN = ("slerp", "split_slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "arcee_fusion")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(fused, "available", lambda: False)


def engines(room=True):
    return Banded(CARD, Remembered(), lambda size: room), OneByOne(Remembered())


def device_of(engine):
    return CARD.device if isinstance(engine, Banded) else torch.device("cpu")


def merged(engine, method, tensors, out, **settings):
    """Merge a band of tensors, each given as base and inputs, as a plan does; return them and their zeros."""
    device = device_of(engine)
    tensors = [[x.to(device) for x in each] for each in tensors]
    row = METHODS[method]
    params = {**row.filled(settings), **row.fixed}
    places = []
    for number, (base, *xs) in enumerate(tensors):
        keys = tuple(f"x{i}" for i in range(len(xs)))
        flat = tuple(x.flatten() for x in xs)
        ground = base.flatten() if row.needs_base(params) else None
        operands = Operands(flat, ground, tuple(base.shape), (None,) * len(xs), keys)
        places.append((operands, Place(f"w{number}", True, params, 0, base.numel(), Remembered())))
    steps = {}
    while len(steps) < len(places):
        asking = []
        for i, (operands, place) in enumerate(places):
            if i not in steps:
                made = row.function(operands, [0.5, 0.3, 0.9][: len(operands.inputs)], place)
                asking.append((i, made, None))
        while asking:
            questions = []
            for i, made, reply in asking:
                if not hasattr(made, "send"):
                    steps[i] = made
                    continue
                try:
                    questions.append((i, made, made.send(reply)))
                except StopIteration as finished:
                    steps[i] = finished.value
            replies = engine.answers([Asked(question, *places[i], i) for i, _, question in questions])
            pairs = zip(questions, replies, strict=True)
            asking = [(i, made, reply) for (i, made, _), reply in pairs if reply is not PENDING]
        if len(steps) < len(places):
            engine.settle()
    outs = [torch.full((operands.numel,), 7.0, dtype=out, device=device) for operands, _ in places]
    work = [(Stepped(steps[i], operands), out) for i, ((operands, _), out) in enumerate(zip(places, outs, strict=True))]
    zeros = engine.write(work)
    engine.settle()
    return [each.cpu() for each in outs], list(zeros.counts)


def alike(mine, theirs):
    """Whether two tensors have the same bits; a NaN is a NaN."""
    return torch.equal(mine.isnan(), theirs.isnan()) and torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0))


def odd(size, count, dtypes, special):
    """Tensors with ties, zeros and differences of every size; dtypes of base and inputs in turn."""
    made = [*experts(count, size)]
    for i, x in enumerate(made[1:]):
        x.view(-1)[i :: 3 + i] = made[0].view(-1)[i :: 3 + i]
        x[x.abs() < 0.2] = 0
        if special:
            x.view(-1)[i + 5 :: 97] = torch.tensor([torch.nan, torch.inf, -torch.inf])[i]
    return [x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(made)]


BANDS = {
    "float32": ([F32], F32, False),
    "bfloat16": ([BF16], BF16, False),
    "float16": ([F16], F16, False),
    "mixed, with NaN and infinities": ([BF16, F32, F16], BF16, True),
}


# the interpreter takes its time: every setting in mixed dtypes, one a method in bfloat16, a few in the others
CASES = [
    (method, settings, kind)
    for method, settings in merging.CASES
    for kind in BANDS
    if kind.startswith("mixed")
    or (
        settings == merging.SETTINGS[method][0]
        and (kind == "bfloat16" or method in ("linear", "zero_aware", "dare_ties", "breadcrumbs", "sce"))
    )
]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("method", "settings", "kind"), CASES)
def test_every_method_on_a_band_gives_the_bits_of_the_plain_path(method, settings, kind):
    dtypes, out, special = BANDS[kind]
    count = merging.inputs_of(method)
    if special and method in NOT_OF_NAN:
        pytest.skip("it looks at whole tensors: no number of theirs would be one")
    # a long row is ordered in so many steps that the interpreter takes half a minute for it
    sizes = [(1,), (2,), (7, 9), (4, 50) if method.startswith("della") else (2, 513)]
    band = [odd(size, count, dtypes, special) for size in sizes]
    ours, plainly = engines()
    try:
        wanted, counted = merged(plainly, method, band, out, **settings)
    except WeightsError:  # a cut falls among NaN
        with pytest.raises(WeightsError):
            merged(ours, method, band, out, **settings)
        return
    found, zeros = merged(ours, method, band, out, **settings)
    for mine, theirs in zip(found, wanted, strict=True):
        assert alike(mine, theirs)
    assert zeros == counted


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("densities", [(0.5, 1.0), (1.0, 0.5), (0.5, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "della", "breadcrumbs", "breadcrumbs_ties"])
def test_inputs_that_are_thinned_out_differently_give_the_bits_of_the_plain_path(method, densities):
    if method == "della" and 0.0 in densities:
        densities = (0.5, 0.2)
    band = [odd(size, 2, [BF16, F32], False) for size in ((2,), (7, 9))]
    (found, zeros), (wanted, counted) = (merged(each, method, band, F32, density=densities) for each in engines())
    for mine, theirs in zip(found, wanted, strict=True):
        assert alike(mine, theirs)
    assert zeros == counted


VALUES = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "ties everywhere": lambda n, g: torch.randint(-2, 3, (n,), generator=g).float(),
    "all zero": lambda n, g: torch.zeros(n),
    "all equal": lambda n, g: torch.full((n,), -0.5),
    "half zero": lambda n, g: torch.randn(n, generator=g).clamp_min(0),
    "heavy tails": lambda n, g: torch.randn(n, generator=g) ** 9,
    "two scales": lambda n, g: torch.where(torch.arange(n) < n // 2, 1e-30, 1e30) * torch.randn(n, generator=g),
    "infinities": lambda n, g: torch.where(torch.arange(n) % 5 == 3, torch.inf, torch.randn(n, generator=g)),
    "signed zeros": lambda n, g: torch.where(torch.arange(n) % 2 == 0, -0.0, 0.0),
    "subnormal": lambda n, g: torch.randn(n, generator=g) * 1e-41,
}
SIZES = [1, 2, 63, 1025]  # the last is two tiles and a weight


def band_of(kind, dtype):
    generator = torch.Generator().manual_seed(3)
    return [VALUES[kind](size, generator).to(dtype) for size in SIZES]


def counts_of(size):
    return [0, 1, size // 3, size // 2, size]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("kind", "dtype", "key"),
    [
        *((kind, dtype, key) for kind in VALUES for dtype, key in ((F32, None), (BF16, None), (F32, "an expert"))),
        *(
            (kind, dtype, key)
            for kind in ("ties everywhere", "infinities", "subnormal")
            for dtype, key in ((F16, None), (BF16, "an expert"), (F32, "an expert without room"))
        ),
    ],
)
def test_exactly_so_many_of_the_smallest_go_as_on_the_plain_path(kind, dtype, key):
    band = band_of(kind, dtype)
    engines_of_both = engines(key != "an expert without room")
    for share in (1, 2, 3, 4) if dtype == F32 and key is None else (2,):

        def jobs(tensors, engine, share=share):
            sought = []
            for i, tensor in enumerate(tensors):
                scoring = Scoring(tensor, Grid((len(tensor), 1)))
                sought.append(Sought(scoring, counts_of(len(tensor))[share], key and (key, i)))
            cuts = engine.cuts(sought)
            return [Pruned(each.scoring.source, cut, each.scoring) for each, cut in zip(sought, cuts, strict=True)]

        same(both(jobs, band, dtype, engines_of_both))


def both(jobs, tensors, out, made=None):
    """Write the jobs on some tensors by both engines; return each engine's tensors and zeros."""
    results = []
    for engine in made or engines():
        there = [tensor.to(device_of(engine)) for tensor in tensors]
        outs = [torch.full_like(tensor.flatten(), 7.0, dtype=out) for tensor in there]
        zeros = engine.write(list(zip(jobs(there, engine), outs, strict=True)))
        engine.settle()
        results.append(([each.cpu() for each in outs], list(zeros.counts)))
    return results


def same(results):
    (found, zeros), (wanted, counted) = results
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert zeros == counted


def scoring_of(matrix, criterion, transposed):
    norms = None
    if criterion is not magnitude:
        inputs = matrix.shape[0 if transposed else 1]
        norms = torch.arange(inputs, device=matrix.device) % 5 * 0.25
    grid = Grid(tuple(matrix.shape), transposed)
    if criterion == "guest":
        return Scoring.whole(matrix.flatten(), grid, lambda weights, factors: weights.abs() * 0.5 + 1.0, norms)
    return Scoring(matrix.flatten(), grid, criterion, norms)


MATRICES = [(1, 4), (7, 12), (33, 68), (4, 256)]  # a program takes 32 lines of the third, and the fourth fills tiles


def matrices(dtype):
    generator = torch.Generator().manual_seed(5)
    made = [torch.randn(*size, generator=generator) for size in MATRICES]
    for matrix in made:
        matrix[matrix.abs() < 0.3] = 0
        matrix.view(-1)[::3] = 0.75
    return [matrix.to(dtype) for matrix in made]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("criterion", "rescale"),
    [(magnitude, False), (magnitude, True), (activated, False), ("guest", True)],
    ids=["magnitude", "magnitude, rescaled", "weighed", "a guest's, rescaled"],
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("keep", "gone"), [(2, 2), (1, 3), (None, 0.5), (None, 0.0)])
def test_lines_and_neighbours_lose_their_lowest_as_on_the_plain_path(keep, gone, criterion, transposed, rescale):
    def jobs(tensors, engine):
        for matrix in tensors:
            scoring = scoring_of(matrix, criterion, transposed)
            inputs = scoring.grid.inputs
            lost = round(gone * inputs) if keep is None else gone
            yield Lines(scoring, inputs - lost if keep is None else keep, lost, rescale)

    made = matrices(F32 if transposed else BF16)
    same(both(jobs, [matrix.t().contiguous() if transposed else matrix for matrix in made], BF16))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("criterion", [magnitude, activated, "guest"], ids=["magnitude", "weighed", "a guest's"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_cuts_of_any_score_and_norms_kept_give_the_bits_of_the_plain_path(dtype, criterion, transposed):
    def jobs(tensors, engine):
        scorings = [scoring_of(matrix, criterion, transposed) for matrix in tensors]
        cuts = engine.cuts([Sought(scoring, len(scoring.source) // 2, None) for scoring in scorings])
        pruned = [Pruned(scoring.source, cut, scoring) for scoring, cut in zip(scorings, cuts, strict=True)]
        factors = engine.factors(pruned)
        return [Pruned(job.source, job.cut, job.scoring, factor) for job, factor in zip(pruned, factors, strict=True)]

    same(both(jobs, matrices(dtype), BF16))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("axis", [0, 1])
def test_units_go_as_on_the_plain_path(axis):
    def jobs(tensors, engine):
        for m in tensors:
            yield Without(m.flatten(), m.shape, axis, torch.arange(0, m.shape[axis], 2, device=m.device))

    same(both(jobs, matrices(BF16), BF16))


def test_a_cut_among_nan_is_an_error_once_the_device_has_told():
    source = torch.full((100,), torch.nan, device=CARD.device)
    source[:10] = 1.0
    engine, _ = engines()
    engine.cuts([Sought(Scoring(source, Grid((100, 1))), 5, None)])
    engine.settle()
    engine.cuts([Sought(Scoring(source, Grid((100, 1))), 50, None)])
    with pytest.raises(WeightsError, match="no order among 100 scores to take the 50 smallest"):
        engine.settle()


@pytest.mark.parametrize("told", [True, False])
def test_a_cut_among_nan_is_an_error_whenever_it_is_asked_for(told):
    remembered, source = Remembered(), torch.full((100,), torch.nan, device=CARD.device)
    source[:10] = 1.0
    base, params = torch.zeros_like(source), {"density": 0.5}
    operands = Operands((source,), base, (100, 1), ("math",), ("x",))
    asked = Asked(Trim(0, 50), operands, Place("w", True, params, remembered=remembered), 0)
    sought = Sought(Scoring(source, Grid((100, 1))), 50, "math")

    def settled(engine, ask):
        ask(engine)
        engine.settle()

    for ask in (lambda engine: engine.cuts([sought]), lambda engine: engine.answers([asked])):
        first = Banded(CARD, remembered, lambda size: True)
        ask(first)
        if told:
            with pytest.raises(WeightsError, match="to take the 50 smallest"):
                first.settle()
        second = Banded(CARD, remembered, lambda size: True)
        with pytest.raises(WeightsError, match="to take the 50 smallest"):
            settled(second, ask)


def test_cuts_that_are_fetched_leave_the_device():
    engine, _ = engines()
    source = torch.arange(100.0, device=CARD.device)
    (ref,) = engine.cuts([Sought(Scoring(source, Grid((100, 1))), 50, "math")])
    engine.settle()
    assert ref.settled == Cut(49.0, 100)
    assert ref.table.values.untyped_storage().nbytes() == 0


def test_more_zeros_than_int32_counts_are_counted_in_a_unit_of_billions():
    search = Search(CARD, [1 << 33], [(1 << 31) + 20], 0)
    search.states[0, 1] = 20  # all keys are looked at
    search._counts[0, 0] = (1 << 31) - 10  # zeros of the tensors before
    last = torch.cat([torch.zeros(60), torch.ones(40)]).to(CARD.device)
    search.tally(search.shown([Scored(last)], [0]))
    search.advance()
    assert search.states[0, :2].tolist() == [0, 9]  # it is in the first bin


def test_numbers_of_the_device_are_fetched_where_no_kernel_is_for_a_job():
    ref = NumberRef(Numbers(torch.tensor([7.0, 1.5], dtype=torch.float64, device=CARD.device)), 1)
    x, base = torch.arange(4.0, device=CARD.device), torch.ones(4, device=CARD.device)
    votes = [Vote((Thinning(),), (growth,), (0.5,), 1.0, False, False) for growth in (ref, 1.5)]
    assert torch.equal(*[vote.chunk([x], base, 0) for vote in votes])
    written = torch.empty(4, dtype=torch.float64, device=CARD.device)
    Pruned(x, factor=ref).write(written)
    assert written.tolist() == [0.0, 1.5, 3.0, 4.5]


def test_nan_stays_nan_beside_an_input_whose_largest_elements_go():
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # as a GPU makes it
    whole, base = torch.ones(4, device=CARD.device), torch.zeros(4, device=CARD.device)
    operands = Operands((whole, torch.cat([torch.ones(3), nan]).to(CARD.device)), base, (4,), (None,) * 2, ("x", "y"))
    step = Vote((Thinning(under=Cut(9.0, 0)), Thinning()), (1.0, 1.0), (1.0, 1.0), 1.0, False, False)
    out = torch.empty(4, device=CARD.device)
    engines()[0].write([(Stepped(step, operands), out)])
    assert out.isnan().tolist() == [False] * 3 + [True]


class Largest:
    """A guest's question."""

    def key(self, x, place):
        return None

    def answer(self, x, place):
        return float(x.inputs[0].max())


def test_a_guests_question_is_answered_by_itself():
    engine, _ = engines()
    operands = Operands((torch.arange(4.0, device=CARD.device),), None, (4,), (None,), ("x",))
    assert engine.answers([Asked(Largest(), operands, Place("w", True, {}), 0)]) == [3.0]


def test_too_little_memory_to_order_an_experts_scores_is_no_failure(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine, _ = engines()
    source = torch.arange(100.0, device=CARD.device)
    monkeypatch.setattr(cuts, "_scores", full)
    (ref,) = engine.cuts([Sought(Scoring(source, Grid((100, 1))), 50, "math")])
    engine.settle()
    assert ref.settled == Cut(49.0, 100)


def test_what_is_kept_of_layouts_is_bounded(monkeypatch):
    monkeypatch.setattr(tables, "KEPT_TILES", 800)
    card = Card(CARD.device, tile=1)
    for size in range(1, 40):
        card.tiles([size, tables.KEPT_TILES // 8])
    assert len(card._tiles) < 8
    assert sum(tiles.number for tiles in card._tiles.values()) <= tables.KEPT_TILES
    assert card.tiles([1600]).number == 1600  # one that is larger serves, too


@pytest.mark.parametrize("axis", [0, 1])
def test_squares_by_unit_are_those_of_the_plain_path(axis):
    from sae_moo.materialization.ops.device.sums import unit_squares
    from sae_moo.materialization.ops.prune import squares

    given = [(matrix, axis) for dtype in (F32, BF16) for matrix in matrices(dtype)]
    there = [(matrix.to(CARD.device), axis) for matrix, axis in given]
    for found, (matrix, _) in zip(unit_squares(CARD, there), given, strict=True):
        found = found.cpu()
        torch.testing.assert_close(found, squares(matrix, axis), rtol=1e-14, atol=0)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_line_that_loses_nan_is_an_error_by_either_engine(rescale):
    matrix = torch.ones(3, 8)
    matrix[1, 1:4] = torch.nan

    def written(engine, keep, gone):
        source = matrix.to(device_of(engine))
        engine.write([(Lines(Scoring(source.flatten(), Grid((3, 8))), keep, gone, rescale), source.flatten().clone())])
        engine.settle()

    for engine in engines():
        written(engine, 4, 4)  # the line holds five numbers: NaN stays
        with pytest.raises(WeightsError, match="no order among 4 scores to take the 2 smallest"):
            written(engine, 2, 2)
        with pytest.raises(WeightsError, match="no order among 8 scores to take the 6 smallest"):
            written(engine, 2, 6)
