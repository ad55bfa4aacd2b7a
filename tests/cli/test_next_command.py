"""Every command that makes something ends with the next command."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pytest

from prod9.cli.front import after
from prod9.volumes import read, write
from tests.architecture.commands_of_pages import Line, parsed
from tests.cli.test_interface import COMMANDS
from tests.fixtures import write_brats_tree
from tests.harness import Ran, Workspace, run

ENDS = {
    "app": "runs until it is stopped",
    "configs list": "prints",
    "configs show": "prints",
    "configs explain": "prints",
    "configs schema": "prints",
    "data to-native": "is the last step: its file is opened beside the scan",
    "doctor": "prints",
    "plan": "prints the commands of all stages itself",
    "test": "is the last step of a training, and prints",
    "weights list": "prints",
    "weights verify": "prints",
}
"""Commands without a next one, and why."""
TELLS = frozenset((after.tell_next, after.tell_after_scores, after.tell_after_training))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _tells(function: Any, seen: set[Any]) -> bool:
    """Return whether ``function`` names what prints a next command, or a function of the commands that does."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if function in TELLS:
        return True
    named: Callable[..., Any] | None = function if isinstance(function, FunctionType) else None
    if named is None or named in seen or not named.__module__.startswith("prod9.cli"):
        return False
    seen.add(named)
    held = [cell.cell_contents for cell in named.__closure__ or ()]
    found = [*held, *(named.__globals__.get(name) for name in _names(named.__code__))]
    return any(_tells(one, seen) for one in found if callable(one))


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, id=" ".join(path)) for path, one in COMMANDS if " ".join(path[1:]) not in ENDS],
)
def test_a_command_that_makes_something_names_the_next_one(command: Any) -> None:
    assert _tells(command.callback, set())


def following(ran: Ran) -> tuple[str, ...]:
    """Return the words of the next command, which has to be one that exists."""
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("Next")]
    assert len(lines) == 1, ran.err
    words = tuple(shlex.split(lines[0].split(": ", 1)[1]))
    parsed(Line("next", words, None))
    return words


def test_what_a_patient_lacked_is_looked_at(tmp_path: Path) -> None:
    assert run("prod9", "data", "simulate", tmp_path / "in", "-n", 1, "--spacing", 6).code == 0
    next(tmp_path.rglob("*-t2f.nii.gz")).unlink()
    made = ("generate", "translate", "--model", "demo/translate")
    words = following(run("prod9", *made, "--patient", tmp_path / "in", "-o", tmp_path / "out"))
    assert words[1:4] == ("data", "check", str(tmp_path / "out"))
    assert run(*words).code == 0
    assert "BraTS-GLI-00000-000" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_parts_are_merged_next_and_then_scored(workspace: Workspace, tmp_path: Path) -> None:
    model = ("generate", "label", "--model", workspace.run2, "-l", "T1", "-n", 2, "--steps", 1)
    for number in (1, 2):
        ran = run("prod9", *model, "-o", tmp_path / "out", "--part", f"{number}/2")
        assert following(ran) == ("prod9", "merge", str(tmp_path / "out"))
    words = following(run("prod9", "merge", tmp_path / "out"))
    assert words[1:3] == ("evaluate", "images")


def test_a_drawn_region_is_looked_at_in_the_app(workspace: Workspace, tmp_path: Path) -> None:
    case = sorted(workspace.cohort.iterdir())[0]
    source = case / f"{case.name}-t1n.nii.gz"
    scan = read(source)
    region = np.zeros(scan.header.shape)
    region[6:10, 7:11, 5:9] = 1
    write(tmp_path / "region.nii.gz", region, scan.header.affine, dtype=np.uint8)
    words = ("--source", f"T1={source}", "--region", tmp_path / "region.nii.gz", "-o", tmp_path / "out")
    told = following(run("prod9", "generate", "inpaint", "--model", workspace.run2, *words))
    assert told[1:4] == ("app", "--model", str(workspace.run2))


def test_scans_beside_each_other_are_registered_next(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 3, (32, 36, 28))
    path = next(tmp_path.rglob("*00001-000-t2f.nii.gz"))
    scan = read(path)
    write(path, np.roll(scan.data, 9, axis=0), scan.header.affine)
    words = following(run("prod9", "data", "check", tmp_path / "cohort", "--deep"))
    assert words[1:4] == ("data", "preprocess", str(tmp_path / "cohort"))


def test_a_step_of_another_command_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    with after.as_step():
        after.tell_next("prod9", "doctor")
    after.remember(["augment", "a b", "-o", "out"])
    after.tell_again("--measure", note="why")
    assert capsys.readouterr().err == "Next, why: prod9 augment 'a b' -o out --measure\n"
