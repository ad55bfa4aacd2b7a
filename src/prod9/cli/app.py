"""``prod9``: the command that holds all others."""

from importlib import import_module
from typing import Annotated

import typer

import prod9
from prod9.cli.shared import new_app, run_app

GROUPS = {
    "data": "data.group",
    "generate": "generate.group",
    "evaluate": "judge.evaluate",
    "configs": "tools.configs",
    "tune": "tools.tune",
    "weights": "tools.weights",
}
"""Groups of commands: name and module of this package that holds their ``app``."""
COMMANDS = {
    "audit": "judge.audit",
    "augment": "augment.command",
    "card": "judge.card",
    "demo": "demo",
    "doctor": "tools.doctor",
    "encode": "encode",
    "export": "tools.export",
    "merge": "parts.merge",
    "plan": "tools.plan",
    "report": "judge.report",
}
"""Single commands: name and module of this package whose ``app`` holds just that one."""

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
    for name, module in GROUPS.items():
        app.add_typer(import_module(f"{__package__}.{module}").app, name=name)
    for name, module in COMMANDS.items():
        (command,) = import_module(f"{__package__}.{module}").app.registered_commands
        command.name = name
        app.registered_commands.append(command)


_mount()
