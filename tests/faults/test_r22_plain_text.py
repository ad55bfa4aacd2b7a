"""Names, labels and messages of others are shown as they are: no markup, no escape codes, in any encoding."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table

import prod9
from prod9.cli import shared
from prod9.cli.stage import print_check
from prod9.system.terminal import PlainColumn, PlainConsole, plain
from tests.harness import run

SOURCE = Path(prod9.__file__).parent
TEXTS = [
    "[/]",
    "o[bold]ut",
    "[link=x]",
    ":x: heart",
    "a\x1b[2Jb",
    "a\x1b]0;title\x07b",
    "a\rb",
    "a\u202egnp.exe",
    "\x9b2J",
]


def printed(value, *, encoding="utf-8"):
    raw = io.BytesIO()
    console = PlainConsole(file=io.TextIOWrapper(raw, encoding=encoding, errors="replace"))
    console.print(value)
    console.file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("text", TEXTS)
def test_r22_text_is_printed_as_it_is_but_for_control_characters(text):
    assert printed(text) == plain(text) + "\n"
    assert "\x1b" not in printed(text)
    table = Table(box=None)
    table.add_column("name")
    table.add_row(text)
    assert plain(text) in printed(table)


@pytest.mark.parametrize("text", TEXTS)
def test_r22_a_progress_display_takes_any_label(text):
    console = PlainConsole(file=io.StringIO())
    with Progress(PlainColumn("{task.description}"), console=console) as bar:
        bar.add_task(text, total=1)
    assert plain(text) in console.file.getvalue()


@given(st.text())
def test_r22_no_text_breaks_a_console_or_leaves_a_control_character(text):
    shown = printed(text, encoding="ascii")
    assert not [letter for letter in shown if ord(letter) < 32 and letter not in "\n\t"]


@pytest.mark.parametrize("text", TEXTS)
def test_r22_errors_and_warnings_are_plain(text, capsys):
    shared.print_error(f"{text}: expected")
    shared.warn(text)
    print_check({"labels": text, "warnings": [text]}, as_json=False)
    captured = capsys.readouterr()
    assert captured.err.count(plain(text)) == 3
    assert plain(text) in captured.out


def test_r22_names_with_markup_reach_the_screen_whole(tmp_path):
    folder = tmp_path / "o[bold]ut[/]"
    ran = run("prod9", "data", "simulate", folder, "-n", "1", "--spacing", "8")
    assert ran.code == 0, ran.err
    assert str(folder) in ran.out


def test_r22_nobody_else_makes_a_console_or_a_column_that_reads_markup():
    forbidden = {
        "rich.console": {"Console"},
        "rich": {"print", "print_json"},
        "rich.progress": {"TextColumn", "track"},
        "rich.prompt": {"Prompt", "Confirm"},
    }
    found = []
    for path in SOURCE.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {name.name for name in node.names} & forbidden.get(str(node.module), set())
                found += [f"{path}: {name}" for name in names]
            if isinstance(node, ast.Call):
                asked = [ast.unparse(word.value) for word in node.keywords if word.arg == "markup"]
                found += [f"{path}: markup={value}" for value in asked if value != "False"]
    assert not found


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize(
    "command", [("configs", "list"), ("--help",), ("generate", "label", "--help"), ("doctor",)]
)
def test_b7_commands_print_in_any_encoding(monkeypatch, encoding, command):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    from prod9.cli.app import app

    assert shared.run(app, list(command)) == 0
    for stream in streams:
        stream.flush()
    assert streams[0].buffer.getvalue()


def test_b7_whatever_is_printed_is_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    app = shared.new_app("A test.")

    @app.command("show")
    def show() -> None:
        """Print."""
        shared.console.print("psnr ↑ Ω \udcff")
        print("fid ↓ \udcff")
        shared.print_json({"a": "↓"})

    assert shared.run(app, ["show"]) == 0
    out.flush()
    assert out.buffer.getvalue().decode("cp1252").startswith("psnr ? ? ?\nfid ? ?\n")


def test_r23_numbers_that_json_does_not_have_are_null(capsys):
    shared.print_json(
        {"a": float("nan"), "b": [float("inf"), 1.0, (float("-inf"),)], "c": {"d": float("nan")}}
    )
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0, [None]], "c": {"d": None}}


def test_c_help_is_there_without_docstrings():
    code = (
        "from prod9.cli.app import app\n"
        "from prod9.cli.transformer import app as stage\n"
        "import typer\n"
        "def walk(command, path):\n"
        "    assert command.help, path\n"
        "    for name, one in getattr(command, 'commands', {}).items(): walk(one, path + [name])\n"
        "for one in (app, stage): walk(typer.main.get_command(one), [])\n"
    )
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
