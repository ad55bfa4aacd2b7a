"""Every command that makes something ends with the next command."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pytest

from prod9.cli.front import after
from prod9.volumes import read, write
from tests.cli.test_interface import COMMANDS
from tests.fixtures import write_brats_tree
from tests.harness import next_of, run

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


def test_scans_beside_each_other_are_registered_next(tmp_path: Path) -> None:
    write_brats_tree(tmp_path / "cohort", 3, (32, 36, 28))
    path = next(tmp_path.rglob("*00001-000-t2f.nii.gz"))
    scan = read(path)
    write(path, np.roll(scan.data, 9, axis=0), scan.header.affine)
    ran = run("prod9", "data", "check", tmp_path / "cohort", "--deep")
    assert next_of(ran)[1:4] == ("data", "preprocess", str(tmp_path / "cohort"))


def test_a_step_of_another_command_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    with after.as_step():
        after.tell_next("prod9", "doctor")
    after.remember(["augment", "a b", "-o", "out"])
    after.tell_again("--measure", note="why")
    assert capsys.readouterr().err == "Next, why: prod9 augment 'a b' -o out --measure\n"
