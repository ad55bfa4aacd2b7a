"""What all commands share: exit codes, one message per error, devices, valid JSON."""

import pytest
import typer

from prod9.cli.shared import DebugOption, DeviceOption, new_app, print_json, resumable, run
from prod9.errors import ConfigError, DataError

app = new_app("A test.")


@app.command()
def fail(kind: str, debug: DebugOption = False) -> None:
    if kind == "exit":
        raise typer.Exit(3)
    if kind == "resumable":
        with resumable("go on with --resume"):
            raise KeyboardInterrupt
    errors = {
        "config": ConfigError("[bold]a.yaml[/]: seed: expected a whole number"),
        "data": DataError("/data/x.nii.gz: truncated"),
        "bug": ZeroDivisionError("division\nby zero"),
        "silent": RuntimeError(),
        "path": PermissionError(13, "Permission denied", "/data/out"),
        "interrupt": KeyboardInterrupt(),
    }
    if kind in errors:
        raise errors[kind]


@app.command()
def device(device: DeviceOption = "auto") -> None:
    typer.echo(device)


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("nothing", 0, ""),
        ("exit", 3, ""),
        (
            "path",
            1,
            "Error: /data/out: cannot be used (Permission denied); check the path, its permissions, and the space on "
            "its disk.\n",
        ),
        ("config", 2, "Error: [bold]a.yaml[/]: seed: expected a whole number\n"),
        ("data", 1, "Error: /data/x.nii.gz: truncated\n"),
        ("bug", 1, "Error: ZeroDivisionError: division by zero\nRun again with --debug for the traceback.\n"),
        ("silent", 1, "Error: RuntimeError.\nRun again with --debug for the traceback.\n"),
        ("interrupt", 130, "Error: Interrupted.\n"),
        ("resumable", 130, "Error: go on with --resume\n"),
    ],
)
def test_every_end_has_its_exit_code_and_one_message(kind, code, message, capsys):
    assert run(app, ["fail", kind]) == code
    captured = capsys.readouterr()
    assert captured.err == message
    assert captured.out == ""


def test_debug_prints_the_traceback(capsys):
    assert run(app, ["fail", "bug", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nothing-like-it"], ["fail"], ["fail", "x", "--what"], ["device", "--device", "gpu"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert run(app, arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:1"])
def test_devices_are_passed_on(name, capsys):
    assert run(app, ["device", "--device", name]) == 0
    assert capsys.readouterr().out == name + "\n"


def test_a_group_of_one_command_stays_a_group(capsys):
    small = new_app("One command.")
    small.command("only")(lambda: typer.echo("ran"))
    assert run(small, ["only"]) == 0
    assert capsys.readouterr().out == "ran\n"


def test_json_holds_no_nan(capsys):
    print_json({"value": float("nan")})
    assert capsys.readouterr().out == '{\n  "value": null\n}\n'
