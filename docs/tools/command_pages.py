"""Writes ``docs/reference/commands.md`` from the programs themselves; ``--check`` only compares."""

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "commands.md"
SPACE = re.compile(r"\s+")
HEAD = """# Commands

Every command with its options, written by `make docs` from the program. `--help` shows the same in a
terminal, `--json` prints results for programs, and exit codes are listed in [train](../how-to/train.md).
"""
OTHERS = """
## Programs of one stage each

Each has the commands of its row, with the options of the same commands of `prod9`, and takes the configs of its stage
only. `generate` is `prod9 generate label`, for control networks `prod9 generate control`.

| program | what for | commands |
|---|---|---|
"""
COMMON = ("--help", "--debug", "--json", "--install-completion", "--show-completion")
"""Options that nearly every command has and that say the same in each."""


def main() -> int:
    """Regenerate the page; return 1 if ``--check`` was given and it differs."""
    text = page()
    stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if "--check" in sys.argv[1:]:
        if stale:
            print(f"{PAGE}: out of date; run `make docs`")
        return int(stale)
    if stale:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        print(f"{PAGE}: regenerated")
    return 0


def page() -> str:
    """Return the page: a section for each command of prod9, and one for the programs that hold some of them again."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    programs = {
        program: typer.main.get_command(import_module(entry.partition(":")[0]).app)
        for program, entry in scripts.items()
    }
    parts = [HEAD, f"\n## prod9\n\n{_text(programs['prod9'].help)}\n"]
    parts += [_section(name, leaf) for name, leaf in leaves("prod9", programs.pop("prod9"))]
    return "".join([*parts, OTHERS, *(_program(name, command) for name, command in programs.items())])


def _program(name: str, command: Any) -> str:
    below = ", ".join(f"`{part}`" for part in command.commands)
    return f"| `{name}` | {_text(command.help)} | {below} |\n"


def leaves(name: str, command: Any) -> list[tuple[str, Any]]:
    """Return the commands below a group, those of groups in it too, with their full names; hidden ones left out."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    found = []
    for part, below in command.commands.items():
        if not below.hidden:
            found += leaves(f"{name} {part}", below)
    return found


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"\n### {name}\n\n{_text(command.help)}\n\n```text\n{name} {usage}\n```\n"]
    options = [one for one in command.params if not getattr(one, "hidden", False)]
    rows = [_row(one) for one in options if not set(one.opts) & set(COMMON)]
    if rows:
        lines += ["\n| option | meaning | default |\n|---|---|---|\n", *rows]
    return "".join(lines)


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.param_type_name == "argument":
        names = f"`{option.metavar or option.name.upper()}`"
    elif not getattr(option, "is_flag", False) and option.metavar:
        names += f" {_text(option.metavar)}"
    default = option.default
    if option.required:
        shown = "required"
    elif default is None or default is False or callable(default) or default in ((), [], ""):
        shown = ""
    else:
        shown = ", ".join(map(_plain, default)) if isinstance(default, (list, tuple)) else _plain(default)
        shown = f"`{shown}`"
    repeated = " Repeatable." if option.multiple and "epeatable" not in (option.help or "") else ""
    return f"| {names} | {_text(option.help)}{repeated} | {shown} |\n"


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _text(text: str | None) -> str:
    """Return help as one line that a cell of a table holds, without links or tags of its own."""
    text = SPACE.sub(" ", text or "").strip().replace("|", "\\|")
    return text if "`" in text else re.sub(r"([<>\[\]*_])", r"\\\1", text)


if __name__ == "__main__":
    sys.exit(main())
