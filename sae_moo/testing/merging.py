"""What every merge method promises, on one tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sae_moo.experts.memory import Remembered
from sae_moo.materialization.ops import fused
from sae_moo.materialization.ops.operands import Operands, Place
from sae_moo.materialization.ops.questions import step_of
from sae_moo.materialization.ops.write import write
from sae_moo.recipe.methods import METHODS, Method, Setting
from sae_moo.testing.randomness import untouched

SIZES = [(1,), (2,), (64,), (3, 5), (40, 33)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WEIGHTS = (0.5, 0.3, 0.9)


def experts(
    count: int, size: Sequence[int] = (3, 5), seed: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Return one tensor of a base and of so many models fine-tuned from it, as far apart as such are."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(*size, generator=generator, dtype=torch.float32)
    steps = [0.3 * torch.randn(*size, generator=generator, dtype=torch.float32) for _ in range(count)]
    return base.to(dtype), *((base + step).to(dtype) for step in steps)


def merged(
    method: str,
    inputs: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    *,
    out: torch.dtype = torch.float32,
    prunable: bool = True,
    keys: Sequence[str] | None = None,
    remembered: Remembered | None = None,
    **settings: Any,
) -> Tensor:
    """Return what a method makes of one tensor.

    Args:
        method: its name.
        inputs: one tensor of every input.
        weights: one for each.
        base: the base's tensor; the method gets it if its row says that it reads it.
        out: dtype that the result is rounded to.
        prunable: whether zeros are meant.
        keys: what identifies the inputs; None: x0, x1, ...
        remembered: what is known of experts; given, the inputs count as experts of these keys.
        settings: of the method; a tuple has a number for each input.
    """
    row = METHODS.find(method)
    params = {**row.filled(settings), **row.fixed}
    called = tuple(keys or (f"x{i}" for i in range(len(inputs))))
    names = called if remembered is not None else (None,) * len(inputs)
    flat = tuple(x.flatten() for x in inputs)
    operands = Operands(flat, base.flatten() if row.needs_base(params) else None, tuple(base.shape), names, called)
    place = Place("w", prunable, params, 0, base.numel(), remembered or Remembered())  # type: ignore[arg-type]
    result = torch.empty(base.numel(), dtype=out, device=base.device)
    zeros = write(step_of(row.function, operands, list(weights), place), operands, result)
    assert zeros == int((result == 0).sum()), "zeros are counted as they are written"
    return result.view(base.shape)


class MergeMethodContract:
    """What every merge method promises; subclass it in a test and name the method.

    Attributes:
        method: the name that recipes call it by.
        settings: settings to try, each beside the defaults.
    """

    method: ClassVar[str]
    settings: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Try every test that takes settings with each of `settings`."""
        if "given" in metafunc.fixturenames:
            metafunc.parametrize("given", self.settings, ids=[str(dict(each)) for each in self.settings])

    @pytest.fixture(params=["compiled", "plain"])
    def path(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once with the compiled forms of the house's steps, once without."""
        if request.param == "plain":
            monkeypatch.setattr(fused, "available", lambda: False)

    @property
    def row(self) -> Method:
        """The method's row."""
        return METHODS.find(self.method)

    @property
    def count(self) -> int:
        """How many inputs are merged."""
        least, most = self.row.inputs
        return max(least, min(3, most or 3))

    def merge(self, inputs: Sequence[Tensor], base: Tensor, given: Mapping[str, Any], **rest: Any) -> Tensor:
        """Merge under fixed weights; what whole models would tell is made up."""
        whole = self.row.whole_model
        made_up = {} if whole is None else {whole.setting: tuple(float(i + 1) for i in range(len(inputs)))}
        weights = rest.pop("weights", WEIGHTS[: len(inputs)])
        return merged(self.method, inputs, weights, base, **{**made_up, **given}, **rest)

    def test_its_row_is_whole(self) -> None:
        """The row names an implementation and says what it is."""
        assert callable(self.row.function)
        assert self.row.summary
        for setting in self.row.settings.values():
            assert setting.about
            assert setting.fault(setting.default) is None
        assert not list(self.row.faults(self.row.defaults)) if self.row.faults else True

    @pytest.mark.usefixtures("path")
    @pytest.mark.parametrize("size", SIZES)
    def test_a_tensor_of_any_shape_gives_finite_numbers(self, given: Mapping[str, Any], size: tuple[int, ...]) -> None:
        """Of its shape, for every size."""
        base, *inputs = experts(self.count, size)
        result = self.merge(inputs, base, given)
        assert result.shape == base.shape
        assert torch.isfinite(result).all()

    def test_the_same_again_is_the_same(self, given: Mapping[str, Any]) -> None:
        """Equal recipes are equal weights, bit for bit."""
        base, *inputs = experts(self.count, (40, 33))
        assert torch.equal(self.merge(inputs, base, given), self.merge(inputs, base, given))

    def test_inputs_are_never_changed(self, given: Mapping[str, Any]) -> None:
        """They are other merges' inputs too, and may be files on disk."""
        base, *inputs = experts(self.count, (40, 33))
        copies = [x.clone() for x in (base, *inputs)]
        self.merge(inputs, base, given)
        assert all(torch.equal(x, copy) for x, copy in zip((base, *inputs), copies, strict=True))

    def test_global_random_numbers_are_left_alone(self, given: Mapping[str, Any]) -> None:
        """A method that draws has a setting `seed` and streams of its own (`ops.random.Draws`)."""
        base, *inputs = experts(self.count, (40, 33))
        with untouched():
            self.merge(inputs, base, given)

    def test_the_order_of_inputs_does_not_count(self, given: Mapping[str, Any]) -> None:
        """Inputs with their weights, settings and keys may come in any order: a recipe sorts them."""
        base, *inputs = experts(self.count, (20, 30))
        keys = [f"x{i}" for i in range(self.count)]
        whole = self.row.whole_model
        settings = dict(given)
        if whole is not None:
            settings.setdefault(whole.setting, tuple(float(i + 1) for i in range(self.count)))
        results = []
        for order in itertools.permutations(range(self.count)):
            turned = {
                name: tuple(value[i] for i in order) if isinstance(value, tuple) and len(value) > 1 else value
                for name, value in settings.items()
            }
            weights = [WEIGHTS[i] for i in order]
            mine = [inputs[i] for i in order]
            results.append(self.merge(mine, base, turned, weights=weights, keys=[keys[i] for i in order]))
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)

    @pytest.mark.usefixtures("path")
    def test_what_is_zero_everywhere_stays_zero(self, given: Mapping[str, Any]) -> None:
        """A merge of pruned models does not fill what all have pruned."""
        zero = torch.zeros(7)
        assert not self.merge([zero] * self.count, zero, given).any()

    def test_a_single_input_is_a_merge_where_the_row_allows_it(self, given: Mapping[str, Any]) -> None:
        """Lineages shrink to it."""
        if self.row.inputs[0] > 1:
            pytest.skip(f"{self.method} merges {self.row.inputs[0]} inputs or more")
        base, x = experts(1, (20, 30))
        single = {name: value[:1] if isinstance(value, tuple) else value for name, value in given.items()}
        assert torch.isfinite(self.merge([x], base, single)).all()

    @pytest.mark.usefixtures("path")
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_arithmetic_is_float32_and_rounded_once(self, given: Mapping[str, Any], dtype: torch.dtype) -> None:
        """Whatever dtype the inputs are stored in, and whatever the result is rounded to."""
        base, *inputs = experts(self.count, (40, 33), dtype=dtype)
        exact = self.merge(inputs, base, given)
        assert torch.equal(self.merge([x.float() for x in inputs], base.float(), given), exact)
        for out in DTYPES:
            assert torch.equal(self.merge(inputs, base, given, out=out), exact.to(out))

    def test_the_size_of_chunks_changes_no_bit(self, given: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Other devices take larger chunks; here smaller ones stand in for them."""
        monkeypatch.setattr(fused, "available", lambda: False)
        base, *inputs = experts(self.count, (70, 72), dtype=torch.bfloat16)
        whole = self.merge(inputs, base, given)
        monkeypatch.setattr("sae_moo.materialization.ops.operands.CHUNK", 720)
        assert torch.equal(whole, self.merge(inputs, base, given))

    def test_compiled_and_plain_give_the_same_bits(
        self, given: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A guest's own steps take the plain path; steps of the house have compiled forms."""
        base, *inputs = experts(self.count, (70, 72))
        compiled = self.merge(inputs, base, given)
        monkeypatch.setattr(fused, "available", lambda: False)
        assert torch.equal(compiled, self.merge(inputs, base, given))

    @pytest.mark.usefixtures("path")
    def test_torchs_default_dtype_changes_nothing(self, given: Mapping[str, Any]) -> None:
        """Whoever else lives in the process may have set it."""
        base, *inputs = experts(self.count, (30, 30))
        usual = self.merge(inputs, base, given)
        for dtype in (torch.float64, torch.bfloat16):
            with _default_dtype(dtype):
                assert torch.equal(usual, self.merge(inputs, base, given))

    def test_what_is_remembered_of_experts_changes_nothing(self, given: Mapping[str, Any]) -> None:
        """Neither the first time nor the next, nor under other settings in between."""
        base, *inputs = experts(self.count, (30, 40))
        once, memory = self.merge(inputs, base, given), Remembered()
        assert torch.equal(once, self.merge(inputs, base, given, remembered=memory))
        for other in self.settings:
            self.merge(inputs, base, other, remembered=memory)
        assert torch.equal(once, self.merge(inputs, base, given, remembered=memory))

    def test_weights_count_unless_the_row_says_that_they_are_unused(self, given: Mapping[str, Any]) -> None:
        """An unused weight changes nothing; one that counts changes something."""
        base, *inputs = experts(self.count, (20, 30))
        weights = ([1.0] * self.count, [1.0, *[0.25] * (self.count - 1)], [0.125] * self.count)
        usual, *others = (self.merge(inputs, base, given, weights=each) for each in weights)
        if self.row.weights == "unused":
            assert all(torch.equal(usual, other) for other in others)
        else:
            assert not all(torch.equal(usual, other) for other in others)

    @pytest.mark.usefixtures("path")
    def test_settings_hold_to_both_ends_of_their_range(self) -> None:
        """What a row allows gives finite numbers; settings are moved one at a time, all inputs alike."""
        base, *inputs = experts(self.count, (20, 30))
        for name, setting in self.row.settings.items():
            for value in _ends(setting):
                assert setting.fault(value) is None, (name, value)
                settings = {**self.row.defaults, name: value}
                if self.row.faults is not None and list(self.row.faults(settings)):
                    continue
                assert torch.isfinite(self.merge(inputs, base, {name: value})).all(), (name, value)

    def test_settings_that_may_differ_by_input_do(self) -> None:
        """A number for each input is as good as one for all, and equal numbers are that one."""
        base, *inputs = experts(self.count, (20, 30))
        for name, setting in self.row.settings.items():
            if setting.per_input:
                one = self.row.defaults[name]
                alike = self.merge(inputs, base, {name: (one,) * self.count})
                assert torch.equal(self.merge(inputs, base, {name: one}), alike), name


def _ends(setting: Setting) -> Iterator[Any]:
    """Yield the extreme values that a setting allows."""
    if isinstance(setting.default, bool):
        yield from (False, True)
    elif isinstance(setting.default, str):
        yield from setting.choices or (setting.default,)
    else:
        step = 1 if setting.whole else 1e-6
        if setting.above is not None:
            yield setting.above + step
        yield from (type(setting.default)(end) for end in (setting.least, setting.most) if end is not None)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
