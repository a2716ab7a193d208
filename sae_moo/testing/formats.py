"""What every export format promises.

A package that offers one runs the suite by ``class TestOnnx(FormatContract): kind = "acme/onnx"``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sae_moo.deploy.card import Card
from sae_moo.deploy.estimate import estimates
from sae_moo.deploy.formats import FORMATS, Format
from sae_moo.deploy.order import Check, Order
from sae_moo.deploy.stream import Stream
from sae_moo.deploy.surroundings import RECIPE_FILE
from sae_moo.errors import InputError, RunError
from sae_moo.experts.live import load_model
from sae_moo.experts.pool import ExpertPool
from sae_moo.jobs.merge import merge
from sae_moo.jobs.verify import check_tensors
from sae_moo.materialization.into_model import materialize
from sae_moo.recipe import Cast, Expert, Merge, Prune, Recipe
from sae_moo.recipe.catalogue import resolved

AVERAGE = Merge("linear", (Expert("math"), Expert("lingua")), (0.75, 0.25))
TOKENS = torch.arange(24).reshape(2, 12) + 3


class FormatContract:
    """What every export format promises, on a merge of the embedded models.

    Attributes:
        kind: name of the format.
        recipe: a model that the format can hold, over the experts ``math`` and ``lingua`` of ``zoo:base``.
        refused: a model that it cannot hold; needed if its row says that it needs anything of a model.
    """

    kind: ClassVar[str]
    recipe: ClassVar[Recipe] = Cast(Prune(AVERAGE, 0.4), "float32")
    refused: ClassVar[Recipe | None] = None

    @pytest.fixture
    def row(self) -> Format:
        """The format's row."""
        return FORMATS.find(self.kind)

    @pytest.fixture
    def pool(self) -> ExpertPool:
        """The embedded base and two experts."""
        return ExpertPool.open("zoo:base", {"math": "zoo:math", "lingua": "zoo:lingua"})

    @pytest.fixture
    def order(self, row: Format, pool: ExpertPool, tmp_path: Path) -> Order:
        """An order that verifies nothing; its output is the only thing in its folder."""
        (tmp_path / "out").mkdir()
        return self.ordered(row, pool, self.recipe, tmp_path / "out" / f"model{(*row.endings, '')[0]}")

    def ordered(self, row: Format, pool: ExpertPool, recipe: Recipe, output: Path) -> Order:
        """Return an order for a model."""
        model = pool.live_model(torch.float32)
        report = materialize(recipe, pool, model)
        return Order(
            format=row,
            output=output,
            stream=Stream(recipe, pool, torch.float32),
            sparsity=report.sparsity,
            whose="the model",
            card=Card("model", "Tested", {}, {}, loads=row.transformers),
            tokenizer=pool.tokenizer(),
            merge=merge,
        )

    def test_its_row_says_what_others_need_to_know(self, row: Format) -> None:
        assert row.summary
        assert not row.summary.endswith(".")
        assert row.loads
        assert callable(resolved(row.write))
        assert row.estimate is None or callable(resolved(row.estimate))
        assert all(ending.startswith(".") for ending in row.endings)

    def test_it_is_written_by_its_name_and_nothing_beside_it(self, row: Format, order: Order) -> None:
        order.write()
        assert list(order.output.parent.iterdir()) == [order.output]
        assert order.output.is_dir() == row.folder
        assert order.output.stat().st_size > 0

    @pytest.mark.parametrize("fault", [RunError("the disk is full"), KeyboardInterrupt()])
    def test_a_failure_leaves_no_file_by_its_name(
        self, row: Format, order: Order, fault: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = order.stream.entries[-1].name
        right = Stream.tensor

        def tensor(stream: Stream, name: str) -> torch.Tensor:
            if name == last:
                raise fault
            return right(stream, name)

        monkeypatch.setattr(Stream, "tensor", tensor)
        with pytest.raises(type(fault)):
            replace(order, check=self.check(order) if row.verified else None).write()
        assert list(order.output.parent.iterdir()) == []

    def test_what_is_there_stays(self, order: Order) -> None:
        order.output.write_text("mine")
        with pytest.raises(InputError, match="exists already"):
            order.write()
        assert order.output.read_text() == "mine"
        assert list(order.output.parent.iterdir()) == [order.output]

    def test_verifying_finds_the_model_in_what_was_written(self, row: Format, order: Order) -> None:
        if not row.verified:
            pytest.skip("cannot be verified")
        replace(order, check=self.check(order)).write()
        assert list(order.output.parent.iterdir()) == [order.output]

    def test_a_difference_leaves_no_file_by_its_name(self, row: Format, order: Order) -> None:
        if not row.verified:
            pytest.skip("cannot be verified")

        def check(folder: Path, digests: Mapping[str, str], exact: bool) -> Mapping[Any, Mapping[str, Any]]:
            raise RunError("the written model is not the evaluated one")

        with pytest.raises(RunError, match="not the evaluated one"):
            replace(order, check=check).write()
        assert list(order.output.parent.iterdir()) == []

    def test_weights_of_another_sparsity_are_not_exported(self, row: Format, order: Order) -> None:
        spoilt = replace(order, sparsity=0.999, check=self.check(order) if row.verified else None)
        with pytest.raises(RunError, match=r"the model gives sparsity .* and had 0\.999"):
            spoilt.write()
        assert list(order.output.parent.iterdir()) == []

    def test_its_estimate_is_what_is_written(self, row: Format, order: Order, tmp_path: Path) -> None:
        if row.estimate is None:
            pytest.skip("has no estimate")
        (found,) = estimates(order.stream, [row])
        assert found.nbytes is not None
        assert found.share == found.nbytes / sum(entry.nbytes for entry in order.stream.entries)
        assert found.gains
        (tmp_path / "beside").mkdir()
        order.surround(tmp_path / "beside")
        order.write()
        names = 500 * len(order.stream.entries)  # what headers and indices say of a tensor
        assert 0 <= size_of(order.output) - found.nbytes <= size_of(tmp_path / "beside") + names

    def test_what_it_cannot_hold_is_refused_and_said_beforehand(
        self, row: Format, pool: ExpertPool, order: Order
    ) -> None:
        if not row.needs:
            pytest.skip("holds any model")
        assert self.refused is not None, f"{row.name} needs {row.needs}: expected a recipe without as `refused`"
        other = self.ordered(row, pool, self.refused, order.output)
        with pytest.raises(InputError) as caught:
            other.write()
        assert f"format {row.name}" in str(caught.value)
        assert list(order.output.parent.iterdir()) == []
        if row.estimate is not None:
            (found,) = estimates(other.stream, [row])
            assert (found.nbytes, found.share) == (None, None)
            assert found.gains

    def test_a_guests_folder_says_what_wrote_it(self, row: Format, order: Order) -> None:
        if row.guest is None or not row.folder:
            pytest.skip("is the house's, or one file")
        order.write()
        written = json.loads((order.output / RECIPE_FILE).read_text(encoding="utf-8"))["format"]
        assert written == {"name": row.name, "distribution": row.guest.distribution, "version": row.guest.version}

    def check(self, order: Order) -> Check:
        """Return what compares a folder with the model of an order: every tensor, and what it computes."""

        def check(folder: Path, digests: Mapping[str, str], exact: bool) -> Mapping[Any, Mapping[str, Any]]:
            check_tensors(folder, digests)
            assert not exact or digests == order.stream.digests
            model = order.stream.pool.live_model(torch.float32)
            materialize(order.stream.recipe, order.stream.pool, model)
            expected, found = (logits(each) for each in (model, load_model(folder, torch.float32, "cpu")))
            torch.testing.assert_close(found, expected, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-3)
            return {}

        return check


def logits(model: Any) -> torch.Tensor:
    """Return what a model computes of a few tokens."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
