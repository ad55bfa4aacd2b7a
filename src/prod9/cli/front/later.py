"""Commands that are imported when they are used: the help of ``prod9`` needs a line of each, not each of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from prod9.cli.parsing import Group


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A command, or a group of commands.

    Attributes:
        module: below ``prod9.cli``; its ``app`` holds the command.
        about: the first sentence of its help.
        panel: the title that it stands under.
        is_group: whether ``app`` itself is meant, as a group.
    """

    module: str
    about: str
    panel: str
    is_group: bool = False

    def load(self, name: str) -> Any:
        """Import the command and return it under ``name``."""
        found: Any = typer.main.get_command(import_module(f"prod9.cli.{self.module}").app)
        if not self.is_group:
            found = found.commands[name] if name in found.commands else next(iter(found.commands.values()))
        found.name, found.rich_help_panel = name, self.panel
        return found

    def line(self, name: str) -> Any:
        """Return a command that only shows up in a list."""
        return TyperCommand(name, help=self.about, rich_help_panel=self.panel, rich_markup_mode="markdown")


class _Commands(dict[str, Any]):
    """Commands by name, each imported when it is looked up."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        super().__init__(dict.fromkeys(entries))
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if found is None:
            found = self[name] = self._entries[name].load(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 (dict.get would not import it)

    def items(self) -> Any:
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        return dict(self.items()).values()


class LaterGroup(Group):
    """A group of the commands of ``entries``, in their order."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.commands = _Commands(self.entries)
        self._only_lines = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of ``entries``; nothing is imported."""
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or within a help its line; None for an unknown name."""
        if self._only_lines and cmd_name in self.entries:
            return self.entries[cmd_name].line(cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help from the lines alone."""
        with self._lines():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return completions from the lines alone."""
        with self._lines():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _lines(self) -> Iterator[None]:
        self._only_lines = True
        try:
            yield
        finally:
            self._only_lines = False
