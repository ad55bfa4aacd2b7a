"""Run the app's server until it is stopped."""

import socket
from pathlib import Path

import uvicorn

from prod9.app.models import Models
from prod9.app.server import App


def serve(models: Models, folder: Path, listening: socket.socket) -> None:
    """Serve on a socket that listens already, until Ctrl-C.

    Args:
        models: what the app offers.
        folder: where uploads and results go.
        listening: bound to this computer alone.
    """
    server(models, folder).run(sockets=[listening])


def server(models: Models, folder: Path) -> uvicorn.Server:
    """Return the server of an app, not yet running."""
    app = App(models=models, folder=folder).server()
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    )
