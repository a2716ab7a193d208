from __future__ import annotations

import json
import socket
import threading
import urllib.request

import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection

from sae_moo.errors import InputError
from sae_moo.explore.dashboard import HOST, serve


def test_the_page_and_the_study_are_served_on_this_machine_only():
    storage = InMemoryStorage()
    storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    addresses: list[str] = []
    there = threading.Event()

    def ready(address: str) -> None:
        addresses.append(address)
        there.set()

    threading.Thread(target=serve, args=(storage, 0, ready), daemon=True).start()
    assert there.wait(30)
    assert addresses[0].startswith(f"http://{HOST}:")
    with urllib.request.urlopen(addresses[0]) as page:
        assert b"optuna" in page.read().lower()
    with urllib.request.urlopen(addresses[0].replace("/dashboard", "/api/studies")) as studies:
        assert [study["study_name"] for study in json.load(studies)["study_summaries"]] == ["s"]


def test_a_taken_port_is_one_message():
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of {HOST}: Address already in use; give another --port"):
            serve(InMemoryStorage(), port, lambda address: pytest.fail("not served"))
