"""A training says what begins before it imports what takes seconds."""

import subprocess
import sys

import pytest

from tests.fixtures import write_brats_tree

_PROBE = """
import sys
from rich.console import Console

heavy = {"torch", "monai", "lightning", "pandas"}
plain = Console.print

def say(self, *parts, **settings):
    if str(parts[:1]).find("Loading libraries") > 0:
        print("before", sorted(heavy & set(sys.modules)), flush=True)
        raise SystemExit(0)
    plain(self, *parts, **settings)

Console.print = say
sys.argv = ["prod9", *sys.argv[1:]]
from prod9.cli.app import main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--config", "demo/stage1", "--set", "data.root=cohort", "-o", "run"),
        ("finetune", "--model", "demo/translate", "--data", "cohort", "-o", "run"),
    ],
    ids=lambda words: words[0],
)
def test_a_training_says_first_what_begins(tmp_path, words):
    write_brats_tree(tmp_path / "cohort", 6)
    ran = subprocess.run([sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.splitlines()[:1] == ["before []"], ran.stdout + ran.stderr
