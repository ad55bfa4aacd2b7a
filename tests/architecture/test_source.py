"""Habits of the source that no linter checks."""

import ast
import re
from pathlib import Path

import pytest

import prod9

PACKAGE = Path(prod9.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [*FILES, *sorted(PACKAGE.rglob("*.yaml"))]
FORBIDDEN = {
    "code from a hub": r"torch\.hub\.(load|list|help)|trust_remote_code",
    "a host name": r"https?://(?!127\.0\.0\.1)",  # this computer is none
    "a path of some machine": r"(?<![\w.])/(home|root|work|Users|mnt|scratch|opt)/",
    "unpickling": r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|pickle\.loads?\(|Unpickler",
    "an evaluated string": r"(?<![\w.])(?<!def )(eval|exec)\(",
    "text in the encoding of the system": r"\.read_text\(\)|\.open\(\)|\.open\(\"[wa]\"\)",
    "unfinished work": r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError",
}
GLOBAL_SEED = r"torch\.manual_seed\(|np\.random\.seed\(|\brandom\.seed\(|seed_everything"
SEEDING = ("training/lightning/", "training/run.py", "demo/")
"""A run owns its process and seeds it; a library gets a generator."""


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def lines_with(pattern, files):
    return [
        f"{name(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_source_holds_no(what):
    found = lines_with(FORBIDDEN[what], TEXTS)
    assert not found, "\n".join(found)


def test_library_code_never_seeds_globally():
    found = lines_with(GLOBAL_SEED, [f for f in FILES if not name(f).startswith(SEEDING)])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_module_is_documented_and_short(path):
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") <= 500, "over 500 lines: split it"
