"""One interface: an option means the same in every command, and every help has an example and no type."""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import typer

from prod9.cli.app import PANELS
from prod9.cli.front.common import COMMON, RENAMED
from tests.harness import MODULES, run

SHORT = {"-o": "--output-dir", "-n": "--num-samples", "-m": "--model", "-c": "--config", "-h": "--help"}


def leaves(command, path):
    """Yield path and command of each command below a group."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


COMMANDS = [
    leaf
    for program, module in MODULES.items()
    for leaf in leaves(typer.main.get_command(import_module(module).app), (program,))
]
OPTIONS = [
    (path, one) for path, command in COMMANDS for one in command.params if one.param_type_name == "option"
]


def names_of(one):
    return [*one.opts, *one.secondary_opts]


def test_an_option_takes_the_same_everywhere():
    found: dict[str, set[frozenset[str]]] = {}
    for _, one in OPTIONS:
        taken = frozenset((one.metavar or "").split("|"))
        for name in names_of(one):
            found.setdefault(name, set()).add(taken)
    for name, kinds in found.items():
        widest = max(kinds, key=len)
        assert all(kind <= widest for kind in kinds), (name, kinds)


def test_a_short_name_stands_for_one_option():
    long_of: dict[str, set[str]] = {}
    for _, one in OPTIONS:
        for name in names_of(one):
            if not name.startswith("--"):
                long_of.setdefault(name, set()).add(next(long for long in one.opts if long.startswith("--")))
    assert all(len(names) == 1 for names in long_of.values()), long_of
    for short, name in SHORT.items():
        assert long_of.get(short, {name}) == {name}


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_has_the_common_options(path, command):
    by_name = {name: one for one in command.params for name in names_of(one)}
    assert {"-v", "--verbose", "-q", "--quiet", "--debug"} <= set(by_name)
    assert "--json" in by_name or path[1:] in (("configs", "show"), ("app",))
    folder = by_name.get("--output-dir")
    assert by_name.get("-o") is folder
    assert folder is None or folder.metavar == "DIR"
    assert "--output" not in by_name or by_name["--output"].metavar == "FILE"
    assert ("--num-samples" in by_name) == ("-n" in by_name)
    assert by_name.get("--device") is None or "--cpu" not in by_name


def test_counts_of_what_is_made_have_one_name():
    old = {name for name, new in RENAMED.items() if new == ("--num-samples",)}
    assert not {name for _, one in OPTIONS for name in names_of(one)} & old


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=" ".join)
def test_help_shows_an_example_and_no_type(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    program, *words = path
    shown = run(program, *words, "-h")
    assert shown.code == 0
    assert not re.search(r"<(bool|int|float|str|path|list)", shown.out)
    assert f"Example: {' '.join(path)}" in " ".join(shown.out.split()) or path[0] == "prod9-generate"
    assert all(f"--{name}" in shown.out for name in COMMON)


@pytest.mark.parametrize("program", MODULES)
def test_every_program_tells_its_version_and_completes(program):
    from prod9 import __version__

    assert run(program, "--version").out == f"prod9 {__version__}\n"
    assert "--install-completion" in run(program, "--help").out


def test_the_help_follows_the_work():
    text = run("prod9", "--help").out
    titles = [f"─ {title} ─" for title in PANELS]
    assert sorted(titles, key=text.index) == titles
    names = [name for names in PANELS.values() for name in names if f"│ {name} " in text]
    assert sorted(names, key=lambda name: text.index(f"│ {name} ")) == names
    assert "─ More ─" not in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("prod9", "data", "simulate", "OUT", "--num-subjects", "0"), "--num-samples"),
        (("prod9", "generate", "patients", "--num", "0"), "--num-samples"),
        (("prod9", "generate", "patients", "--num=0"), "--num-samples"),
        (("prod9", "demo", "--num-patients", "0"), "--num-samples"),
        (("prod9", "tune", "sampler", "RUN", "--volumes", "0"), "--num-samples"),
        (("prod9", "evaluate", "utility", "A", "B", "--steps", "0"), "--training-steps"),
    ],
)
def test_old_names_are_still_taken(old, new):
    ran = run(*old)
    assert ran.code == 2
    assert f"Invalid value for '{new}'" in ran.err


@pytest.mark.parametrize("words", [("1", "1", "-2"), ("1,1,-2",), ("small",), ("1,2",)])
def test_a_spacing_is_one_number_or_three(words):
    ran = run("prod9", "evaluate", "images", "A", "B", "--spacing", *words)
    assert ran.code == 2
    assert "Invalid value for '--spacing'" in ran.err


def test_a_folder_is_no_file(tmp_path):
    ran = run("prod9", "report", tmp_path, "-o", tmp_path / "report.html")
    assert ran.code == 2
    assert "use --output for a file" in ran.err
    assert not list(tmp_path.iterdir())


def test_quiet_keeps_errors_and_verbose_excludes_it(tmp_path):
    ran = run("prod9", "data", "check", tmp_path, "-q")
    assert ran.code != 0
    assert ran.err.startswith("Error:")
    both = run("prod9", "doctor", "-q", "-v")
    assert both.code == 2
    assert "got both" in both.err


@pytest.mark.parametrize("what", ["train", "validate", "test"])
def test_one_door_finds_the_stage_by_itself(what, tmp_path):
    ran = run("prod9", what, "--config", "demo/stage2", "--print-config")
    assert ran.code == 0, ran.err
    assert "stage: transformer" in ran.out
    assert run("prod9", what, "--config", "demo/stage1", "--print-config").out.endswith(
        "stage: autoencoder\n"
    )


def test_train_with_nothing_says_what_to_give():
    ran = run("prod9", "train")
    assert ran.code == 2
    assert "prod9 plan DIR" in ran.err
    assert "prod9 train --config demo/stage1" in ran.err


@pytest.mark.parametrize("group", ["configs", "weights"])
def test_a_list_is_never_cut(group, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    rows = run("prod9", group, "list", "--json").json
    lines = run("prod9", group, "list").out.splitlines()
    told = [
        line for line in lines if line and not line.startswith(("Packaged", "Published", "name ", "--model "))
    ]
    assert len(told) == len(rows)
    for row, line in zip(rows, told, strict=True):
        assert all(str(row[key]) in line for key in ("name", "stage", "file", "source") if row.get(key))


def test_shells_complete_the_names_of_configs():
    from prod9.cli.front.completion import config_names

    assert "demo/stage1" in config_names("demo/")
    assert not config_names("nothing/")


def test_bash_completes(tmp_path):
    words = {
        "COMP_WORDS": "prod9 train --config demo/sta",
        "COMP_CWORD": "3",
        "_PROD9_COMPLETE": "complete_bash",
    }
    code = "import sys; sys.argv = ['prod9']; from prod9.cli.app import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert "demo/stage1" in ran.stdout.split(), ran.stderr
