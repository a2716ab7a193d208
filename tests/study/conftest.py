from __future__ import annotations

import logging
import os
import sys
import time
from importlib.util import find_spec

import pytest


class Machines:
    """A Ray cluster of made-up machines on this one, on the loopback interface; `join` adds one, `leave` takes it."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray
        self._cluster = Cluster(head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self._cluster.address

    def join(self, cpus: int = 2):
        return self._cluster.add_node(num_cpus=cpus)

    def leave(self, machine) -> None:
        if machine in self._cluster.worker_nodes:
            self._cluster.remove_node(machine, allow_graceful=False)
        while sum(node["Alive"] for node in self.ray.nodes()) > 1 + len(self._cluster.worker_nodes):
            time.sleep(0.2)  # until its end is known

    def close(self) -> None:
        self.ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def machines():
    """A cluster whose machines have room for two workers in all; this process is connected to it."""
    if find_spec("ray") is None:  # it is not imported yet: it reads its environment then
        pytest.skip("Ray is not installed: pip install 'sae-moo[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_AUTH_MODE", "token")  # one that is there by chance is not looked for
        patch.setenv("RAY_AUTH_TOKEN", "of-the-tests-" + "0" * 19)
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # for what tests send
        opened = Machines()
        opened.join()
        opened.ray.init(opened.address, log_to_driver=False, logging_level=logging.ERROR)
        yield opened
        opened.close()
