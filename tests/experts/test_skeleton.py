from __future__ import annotations

import pytest
import torch

from sae_moo.experts.checkpoint import Checkpoint
from sae_moo.experts.live import load_model
from sae_moo.experts.skeleton import Piece, Places, Skeleton
from sae_moo.experts.updates import Product

LIVE = torch.arange(3 * 8 * 5, dtype=torch.float32).reshape(3, 8, 5)
VIEWS = {
    "all experts": lambda live: live,
    "one expert": lambda live: live[1],
    "the upper half of one expert": lambda live: live[2][4:],
    "some columns of one expert": lambda live: live[0][:, 1:4],
    "one expert turned": lambda live: live[1].T,
    "the lower half of one expert turned": lambda live: live[1][:4].T,
    "every second row of one expert": lambda live: live[2][1::2],
    "two experts": lambda live: live[1:],
    "all experts turned": lambda live: live.transpose(1, 2),
    "the upper half of all experts": lambda live: live[:, 4:],
    "one row": lambda live: live[1][3],
}


def piece_of(view) -> Piece:
    part = VIEWS[view](LIVE)
    return Piece("x", (tuple(part.shape), part.stride(), part.storage_offset()))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_piece_gets_its_part_of_the_products_of_all_experts(view, turned):
    generator = torch.Generator().manual_seed(1)
    outputs, inputs, rank = (5, 8, 2) if turned else (8, 5, 2)
    a, b = torch.randn(3, rank, inputs, generator=generator), torch.randn(3, outputs, rank, generator=generator)
    stored = {"a": a.flatten(0, 1), "b": b.permute(1, 2, 0).flatten(1)}
    products = b @ a
    whole = LIVE + 0.5 * (products.transpose(1, 2) if turned else products)
    blocks = piece_of(view).blocks(tuple(LIVE.shape), turned)
    composed = Product("a", "b", None, 0.5, blocks, experts=3).applied(
        VIEWS[view](LIVE).contiguous(), stored.__getitem__
    )
    torch.testing.assert_close(composed, VIEWS[view](whole).contiguous())
    assert torch.equal(piece_of(view).of(LIVE), VIEWS[view](LIVE))


@pytest.mark.parametrize(
    "view",
    [
        ((2, 2), (5, 2), 0),  # every second column
        ((2, 5), (7, 1), 0),  # rows that are none
        ((2, 3), (5, 1), 4),  # beyond the end of a row
        ((5, 5), (5, 1), 20),  # beyond the end of an expert
        ((2, 8, 5), (80, 5, 1), 0),  # every second expert
        ((1, 2, 8, 5), (120, 40, 5, 1), 0),
    ],
)
def test_what_is_no_block_of_a_matrix_is_said_to_be_none(view):
    assert piece_of("one expert").blocks((3, 8, 5), turned=False)
    assert Piece("x", view).blocks((3, 8, 5), turned=False) == ()


def test_a_skeleton_has_the_live_models_names_and_shapes_and_no_memory(tiny_folders):
    base = Checkpoint(str(tiny_folders["base"]))
    skeleton = Skeleton(base)
    live = dict(load_model(base.folder, torch.float32, "cpu").named_parameters())
    for name, tensor in live.items():
        place = skeleton.parameter(name)
        assert place is not None
        assert place.shape == tuple(tensor.shape)
        assert torch.equal(place.pieces[0].of(base.load(place.pieces[0].name)), tensor)
    assert skeleton.text == "model."
    assert skeleton.own_parameters("model.norm") == ("weight",)
    assert skeleton.own_parameters("nowhere") == ()


def test_names_that_the_checkpoint_has_are_found_without_a_model(tiny_folders, monkeypatch):
    monkeypatch.setattr("sae_moo.experts.skeleton._weightless", lambda folder: pytest.fail("a model was built"))
    places = Places(Checkpoint(str(tiny_folders["base"])))
    name = "model.layers.0.self_attn.q_proj.weight"
    wrapped = "model.language_model.layers.0.self_attn.q_proj.weight"
    for each in (name, wrapped, "language_model.model.layers.0.self_attn.q_proj.weight"):
        found = places.find(each)
        assert found is not None
        assert found.pieces == (Piece(name),)
