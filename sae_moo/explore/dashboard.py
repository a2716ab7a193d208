"""optuna-dashboard over a study."""

from __future__ import annotations

from sae_moo.storage import OptunaStorage

HOST = "127.0.0.1"  # the dashboard can edit and delete trials: it is for this machine only


def serve(storage: OptunaStorage, port: int) -> None:
    """Serve the dashboard until interrupted.

    Args:
        storage: an open Optuna storage.
        port: TCP port on 127.0.0.1.

    Raises:
        OSError: if the port is taken.
    """
    from optuna_dashboard import run_server

    run_server(storage, host=HOST, port=port)
