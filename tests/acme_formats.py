"""The module of a package with export formats of its own; `guests.installed` puts it where an installer would."""

from __future__ import annotations

import numpy as np

from sae_moo.deploy.estimate import Dense
from sae_moo.deploy.formats import Format
from sae_moo.deploy.surroundings import CARD_FILE
from sae_moo.deploy.tensor_files import write_shards


def folder(order, output):
    for entry, tensor in order.tensors():
        np.save(output / f"{entry.name}.npy", tensor.numpy())
    with order.scratch() as scratch:  # back from what was written alone
        arrays = {entry.name: np.load(output / f"{entry.name}.npy") for entry in order.stream.entries}

        def content(entry):
            yield np.ascontiguousarray(arrays[entry.name]).reshape(-1).view("uint8").data

        write_shards(scratch, order.stream.entries, content, 10**9)
        order.surround(scratch)
        if card := order.verified(scratch):
            (output / CARD_FILE).write_text(card)


def file(order, output):
    with output.open("wb") as opened:
        np.savez(opened, **{entry.name: tensor.numpy() for entry, tensor in order.tensors()})
    order.check_sparsity()


def careless(order, output):
    (output / "weights").write_bytes(b"x")


def broken(order, output):
    (output / "half").write_bytes(b"x")
    raise KeyError("graph")


def empty(order, output):
    pass


class BrokenSizing(Dense):
    def nbytes(self):
        raise KeyError("graph")


NUMPY = Format(
    name="",
    summary="a folder of arrays",
    write="acme:folder",
    loads="numpy.load",
    transformers=False,
    verified="made a folder of tensors again",
    estimate="sae_moo.deploy.estimate:Dense",
    gains="numpy: all of it",
    next_step=(("python -m acme {output}", "looked at"),),
)
ONE = Format(
    name="",
    summary="one archive of arrays",
    write="acme:file",
    loads="numpy.load",
    folder=False,
    endings=(".npz",),
    tokenizer=False,
    transformers=False,
)
CARELESS = Format(name="", summary="nothing verified", write="acme:careless", loads="nobody", verified="never")
BROKEN = Format(name="", summary="half of it", write="acme:broken", loads="nobody")
EMPTY = Format(name="", summary="nothing", write="acme:empty", loads="nobody")
POINTS = {"sae_moo.formats": {name: name.upper() for name in ("numpy", "one", "careless", "broken", "empty")}}
