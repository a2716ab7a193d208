"""optuna-dashboard over a study."""

from __future__ import annotations

from collections.abc import Callable
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sae_moo.errors import InputError
from sae_moo.storage import OptunaStorage

HOST = "127.0.0.1"  # the dashboard can edit and delete trials: it is for this machine only


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing about single requests."""


def serve(storage: OptunaStorage, port: int, ready: Callable[[str], None]) -> None:
    """Serve the dashboard until interrupted.

    Args:
        storage: an open Optuna storage.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        ready: called with the page's address once it is served.

    Raises:
        InputError: if the port is taken.
    """
    from optuna_dashboard import wsgi

    try:
        server = make_server(HOST, port, wsgi(storage), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"port {port} of {HOST}: {error.strerror}; give another --port") from error
    with server:
        ready(f"http://{HOST}:{server.server_port}/dashboard")
        server.serve_forever()
