"""``prod9 app``: a page in the browser that generates on this computer."""

import errno
import importlib.util
import socket
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from prod9.cli.shared import DebugOption, DeviceOption, console, new_app
from prod9.errors import ConfigError

app = new_app("Generate in the browser: choose a model, give scans or a mask, look, download.")

DEFAULT_PORT = 7860


@app.command(name="app", example="prod9 app")
def local_app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="Model to offer beside the packaged ones; repeatable.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for a free one.")
    ] = DEFAULT_PORT,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Keep uploads and results here. [deleted at the end]"
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the default browser.")
    ] = True,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Serve a page on this computer alone: http://127.0.0.1:7860. Ctrl-C ends it.

    Nothing is sent anywhere, and no other computer can reach it. It needs `pip install 'prod9[app]'`.
    """
    listening = _listen(port)
    from prod9.app.models import PACKAGED, Models
    from prod9.devices import torch_device
    from prod9.files import check_writable
    from prod9.models.named.find import require_model

    for name in model or []:
        require_model(name)
    if output_dir is not None:
        check_writable(output_dir)
    asked = list(model or [])
    names = (*dict.fromkeys(asked), *(name for name in PACKAGED if name not in asked))
    models = Models(names=names, device=str(torch_device(device)))
    kept = (
        tempfile.TemporaryDirectory(prefix="prod9-app-")
        if output_dir is None
        else nullcontext(str(output_dir))
    )
    with kept as folder, listening:
        from prod9.app.serving import serve

        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        console.print(f"{address}  (on this computer alone; Ctrl-C ends it)")
        if browser:
            typer.launch(address)
        serve(models, Path(folder), listening)


def _listen(port: int) -> socket.socket:
    """Return a socket of this computer alone that listens on ``port``; ConfigError where that cannot be."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"prod9 app: expected {' and '.join(missing)} to be installed, got none; run pip install 'prod9[app]'."
        )
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        why = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ConfigError(f"--port: expected a free port, got {port} ({why}); name another, or 0.") from error
    return listening
