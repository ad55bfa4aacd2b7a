"""``prod9``: one door to all commands."""

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

import prod9
from prod9.cli.shared import new_app, run_app

GROUPS = ("data", "generate", "evaluate", "configs", "weights")
"""Modules of this package whose ``app`` becomes a group of commands."""
COMMANDS = ("audit", "card", "demo", "doctor", "encode", "export", "plan", "report")
"""Modules of this package whose ``app`` holds the one command of that name."""

app = new_app(
    "Generative models of 3D medical images: from NIfTI folders to NIfTI volumes.\n\n"
    "Start with `prod9 demo`. Training has commands of its own: `prod9-train-autoencoder`, `prod9-train-transformer` "
    "and `prod9-train-maskgit-controlnet`; `prod9-train-maisi-vae`, `prod9-train-maisi-diffusion` and "
    "`prod9-train-maisi-controlnet`."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prod9 {prod9.__version__}")
        raise typer.Exit


@app.callback(help=app.info.help)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of ``prod9`` itself."""


def main() -> None:
    """Run ``prod9``."""
    run_app(app)


def _mount() -> None:
    for name in (*COMMANDS, *GROUPS):
        module = f"{__package__}.{name}"
        if find_spec(module) is None:
            continue
        part: typer.Typer = import_module(module).app
        if name in GROUPS:
            app.add_typer(part, name=name)
        else:
            (command,) = part.registered_commands
            command.name = name
            app.registered_commands.append(command)


_mount()
