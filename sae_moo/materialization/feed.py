"""Experts' tensors on the device of the work, sent there one band ahead of it.

A band is a list of tensors that are worked on together. On a GPU the host reads and sends the next band's operands
while the kernels of this one run, through a ring of page-locked memory (`staging`), and the work waits for what it
needs alone. What is used most stays on the device (`experts.resident`). On the CPU nothing has to be sent; on devices
without streams a tensor is sent when it is asked for. Written for CUDA and tested on the CPU with a device that is made
up; experimental until it was run on a GPU.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Sequence
from itertools import chain
from threading import Lock

import torch
from torch import Tensor

from sae_moo.errors import out_of_memory
from sae_moo.experts.layout import STORED_DTYPES
from sae_moo.experts.pool import ExpertPool, TensorInfo
from sae_moo.experts.resident import Resident
from sae_moo.materialization.link import link_to, located
from sae_moo.materialization.staging import Shipment, Source, Staging, staging_to
from sae_moo.recipe import BASE

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Names of an expert and of a tensor."""


class Feed:
    """Experts' tensors on a device, the next ones on their way while these are worked on.

    All work of a feed is given on one stream, the one that is current where it is called.

    Args:
        pool: the experts.
        device: where the tensors are needed.
        names: the experts whose tensors will be asked for.
        ahead: whether to send ahead; None: on CUDA devices. Elsewhere the same order of work runs in plain memory.
        staging: the ring to send through; None: the device's.
        resident: what stays on the device; None: the pool's there, and nothing on the CPU.
    """

    def __init__(
        self,
        pool: ExpertPool,
        device: torch.device | str,
        names: Sequence[str],
        ahead: bool | None = None,
        *,
        staging: Staging | None = None,
        resident: Resident | None = None,
    ) -> None:
        self._pool = pool
        self._device = located(device)
        self._names = tuple(dict.fromkeys(names))
        if ahead is None:
            ahead = staging is not None or link_to(self._device) is not None
        self._staging = (staging or staging_to(self._device)) if ahead else None
        if resident is None:
            resident = Resident(0) if self._device.type == "cpu" else pool.resident(self._device)
        self._own = {name: self._tensors_of(name) for name in self._names}
        if any(n < len(pool.tensors) for n in self._own.values()):
            self._own[BASE] = len(pool.tensors)
        resident.count(self._own)
        self._resident = resident
        self._here = resident.tensors
        self._band = 0
        self._bands: tuple[Sequence[TensorInfo], ...] = ((), ())  # the one before and this
        self._leaving: list[Tensor] = []
        self._on_its_way: dict[Key, tuple[Shipment, int]] = {}
        self._shipments: dict[Shipment, int] = {}  # and the number of the last band that needs them
        weakref.finalize(self, _drop_all, self._shipments).atexit = False

    def begin(self, band: Sequence[TensorInfo], following: Sequence[TensorInfo] = ()) -> None:
        """Say what is worked on from now on, and what comes after it: that should be on its way meanwhile.

        Args:
            band: tensors, whose operands are sent unless they are there or on their way.
            following: tensors of the next band.

        Raises:
            torch.OutOfMemoryError: if the device has no room for the band.
        """
        self._band += 1
        self._bands = self._bands[-1], band
        self._leaving = self._resident.left()  # of the band before: work on them may be given until the next begins
        if self._staging is None:
            return
        for shipment in [each for each, last in self._shipments.items() if last < self._band - 1]:
            self._shipments.pop(shipment)
            self._on_its_way = {key: way for key, way in self._on_its_way.items() if way[0] is not shipment}
            shipment.drop()
        if self.complete:
            return
        self._send(band, self._band)
        self._send(following, self._band + 1)

    @property
    def complete(self) -> bool:
        """Whether all tensors that will be asked for stay on the device, so that nothing has to be sent."""
        return all(len(self._here.get(name, ())) == n for name, n in self._own.items())

    def get(self, name: str, tensor: str) -> Tensor:
        """Return one tensor of one expert on the device, as `ExpertPool.load_on`: do not write to it.

        It is valid until the band after the next begins. One that is not of the band is sent now.
        """
        here = self._here.get(name)
        kept = None if here is None else here.get(tensor)
        if kept is not None:
            return kept
        if self._staging is None:
            return self._pool.load_on(name, tensor, self._device)
        key = self._key(name, tensor)
        kept = self._resident.get(*key)
        if kept is not None:
            return kept
        if key not in self._on_its_way:
            self._ship_now(self._staging, [key])
        shipment, place = self._on_its_way[key]
        self._shipments[shipment] = max(self._band, self._shipments[shipment])
        return self._resident.keep(*key, shipment.arrived(place), own=False)

    def _key(self, name: str, tensor: str) -> Key:
        return self._pool.owner(name, tensor), tensor

    def _tensors_of(self, name: str) -> int:
        """Return how many tensors of an expert are sent: what an adapter leaves as it is, is sent as the base's."""
        pool = self._pool
        if name == BASE or self._staging is None:
            return len(pool.tensors)
        return pool.remembered.get(
            ("tensors of its own", name), lambda: sum(pool.owner(name, info.name) == name for info in pool.tensors)
        )

    def _send(self, band: Sequence[TensorInfo], number: int) -> None:
        """Begin to send what of a band is neither there nor on its way."""
        missing = []
        for key in dict.fromkeys(self._key(name, info.name) for info in band for name in self._names):
            way = self._on_its_way.get(key)
            if way is not None:
                self._shipments[way[0]] = max(number, self._shipments[way[0]])
            elif self._resident.get(*key) is None:
                missing.append(key)
        if not missing:
            return
        assert self._staging is not None
        if number == self._band:
            self._ship_now(self._staging, missing)
            return
        try:
            self._ship(self._staging, missing, number)
        except RuntimeError as error:  # it is sent when it is its turn
            if not out_of_memory(error):
                raise
            _tell_behind()

    def _ship_now(self, staging: Staging, keys: Sequence[Key]) -> None:
        """Begin to send what is needed now, at the cost of what stays on the device if there is no other room."""
        try:
            self._ship(staging, keys, self._band)
        except RuntimeError as error:
            wanted = sum(self._source(*key).nbytes for key in keys)
            worked_on = {each.name for each in chain(*self._bands)}
            if not out_of_memory(error) or not self._resident.give_back(wanted, worked_on):
                raise
            self._ship(staging, keys, self._band)

    def _ship(self, staging: Staging, keys: Sequence[Key], number: int) -> None:
        sources = [self._source(*key) for key in keys]
        shipment = staging.shipment(sources)
        self._shipments[shipment] = number  # before anything is on its way: Ctrl-C may come in between
        staging.begin(shipment, sources)
        self._on_its_way.update({key: (shipment, place) for place, key in enumerate(keys)})

    def _source(self, name: str, tensor: str) -> Source:
        facts = self._pool.checkpoints[name].tensors[tensor]
        return Source(
            f"{name}: {tensor}",
            STORED_DTYPES[facts.dtype],
            facts.shape,
            functools.partial(_load, self._pool, name, tensor),
        )


def _load(pool: ExpertPool, name: str, tensor: str) -> Tensor:
    if pool.stored(name, tensor):
        return pool.load(name, tensor)
    with _computing:
        return pool.load(name, tensor)


_computing = Lock()
"""What is computed, not stored, takes memory and all processors: one at a time."""


def _drop_all(shipments: dict[Shipment, int]) -> None:
    """Leave nothing on its way of a feed that nobody has any more: after its last band, an error, or Ctrl-C."""
    for shipment in shipments:
        shipment.drop()


@functools.cache
def _tell_behind() -> None:
    log.warning("the device's memory is too short to send experts ahead of the work: each band waits for its own")
