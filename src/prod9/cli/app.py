"""``prod9``: the command that holds all others."""

from collections.abc import Mapping
from importlib import import_module

from prod9.cli.parsing import Group
from prod9.cli.shared import new_app, run_app
from prod9.cli.stage import add_run_commands
from prod9.stages import STAGES

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
    "app": "tools.local_app",
    "audit": "judge.audit",
    "augment": "augment.command",
    "card": "judge.card",
    "demo": "demo",
    "doctor": "tools.doctor",
    "encode": "encode",
    "export": "tools.export",
    "finetune": "finetune",
    "merge": "parts.merge",
    "plan": "tools.plan",
    "report": "judge.report",
}
"""Single commands: name and module of this package whose ``app`` holds just that one."""
PANELS: Mapping[str, tuple[str, ...]] = {
    "Try it": ("demo", "app", "doctor"),
    "Your data": ("data", "plan", "configs"),
    "Train": ("train", "finetune", "validate", "test", "encode"),
    "Generate": ("generate", "augment", "merge", "tune"),
    "Judge": ("evaluate", "audit", "report"),
    "Share": ("export", "card", "weights"),
}
"""Titles in the help, in the order of the work, and what stands below each."""


class _InOrderOfWork(Group):
    order = tuple(name for names in PANELS.values() for name in names)


app = new_app(
    "Generative models of 3D medical images: from NIfTI folders to NIfTI volumes.\n\n"
    "Start with `prod9 demo`; on data of your own with `prod9 data check DIR`, then `prod9 plan DIR`, which prints the "
    "commands that follow.",
    cls=_InOrderOfWork,
)


def main() -> None:
    """Run ``prod9``."""
    run_app(app)


def _mount() -> None:
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    add_run_commands(app, *STAGES)
    for name, module in GROUPS.items():
        group = import_module(f"{__package__}.{module}").app
        app.add_typer(group, name=name, rich_help_panel=panels.get(name, "More"))
    for name, module in COMMANDS.items():
        (command,) = import_module(f"{__package__}.{module}").app.registered_commands
        command.name = name
        app.registered_commands.append(command)
    for command in app.registered_commands:
        command.rich_help_panel = panels.get(str(command.name), "More")


_mount()
