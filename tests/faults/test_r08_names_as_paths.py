"""A name that a file said never leads out of the folder that it is used in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prod9.errors import DataError
from prod9.files import inside

ESCAPES = [
    "../evil",
    "../../evil",
    "a/../../evil",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a//b",
    "a/",
    "C:\\x",
    "C:x",
]
ESCAPES += ["..\\evil", "a\\..\\..\\evil", "\\\\host\\share\\x", "a\0b", "a\nb", "a\x1b[2Jb", "./a"]


@pytest.mark.parametrize("name", ESCAPES)
def test_r8_a_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(DataError, match="expected a name"):
        inside("out", name)


@pytest.mark.parametrize(
    "name", ["T1_0000.nii.gz", "case/case-t1n.nii.gz", "a b", "Zoë", "...", "..a", "a..b"]
)
def test_r8_honest_names_stay(name):
    assert inside("out", name) == Path("out") / name


@given(st.text(alphabet="ab./\\:~ é", max_size=12))
def test_r8_whatever_is_taken_lies_inside(name):
    try:
        path = inside("/out", name)
    except DataError:
        return
    assert Path("/out") in path.resolve().parents
