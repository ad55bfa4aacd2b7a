"""Whatever a library raises while it reads a file, one error names the file and says what to do."""

import errno
import gzip
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from prod9.errors import CheckpointError, ConfigError, DataError
from prod9.files import atomic_write, exclusive, reading, sha256

ODD = [
    TypeError("no"),
    OverflowError("cannot convert float infinity to integer"),
    RecursionError("too deep"),
    KeyError("key"),
    zlib.error("bad"),
    EOFError(),
    AssertionError(),
    gzip.BadGzipFile("Not a gzipped file"),
    NotImplementedError("compression type 99"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(b"content")
    return tmp_path / "a.bin"


def fails(path: Path, problem: BaseException | None = None, **kwargs: object) -> str:
    def read() -> None:
        with reading(path, "a list", **kwargs):
            if problem is not None:
                raise problem
            path.read_bytes()

    with pytest.raises(DataError) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("problem", ODD, ids=lambda problem: type(problem).__name__)
def test_r3_every_exception_names_the_file_and_the_remedy(file: Path, problem: Exception) -> None:
    message = fails(file, problem)
    assert "expected a list" in message
    assert str(problem).strip("'") in message or type(problem).__name__ in message
    assert message.endswith("copy or download it again.")


def test_r3_an_error_of_prod9_passes_as_it_is(file: Path) -> None:
    assert fails(file, DataError(f"{file}: says enough; copy it.")) == f"{file}: says enough; copy it."


def test_r3_the_kind_of_error_and_the_remedy_can_be_chosen(file: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="use another one"),
        reading(file, "a checkpoint", error=CheckpointError, remedy="use another one"),
    ):
        raise TypeError
    with pytest.raises(ConfigError, match="no such file"), reading(file.parent / "no", error=ConfigError):
        pass


def test_r3_an_interruption_is_no_fault_of_the_file(file: Path) -> None:
    with pytest.raises(KeyboardInterrupt), reading(file):
        raise KeyboardInterrupt


def test_r3_messages_of_libraries_are_one_short_line_of_plain_characters(file: Path) -> None:
    message = fails(file, ValueError("a\nb\x1b[31mc" + "d" * 5000))
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 500


def test_r3_memory_that_is_not_there(file: Path) -> None:
    assert "memory" in fails(file, MemoryError())


def _missing(folder: Path) -> Path:
    return folder / "absent"


def _dangling(folder: Path) -> Path:
    (folder / "link").symlink_to("../.git/annex/objects/ab/SHA256E-s1")
    return folder / "link"


def _below_dangling(folder: Path) -> Path:
    (folder / "patients").symlink_to(folder / "unmounted")
    return folder / "patients" / "a.bin"


def _to_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def _folder(folder: Path) -> Path:
    return folder


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _long_name(folder: Path) -> Path:
    return folder / ("x" * 300)


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (_missing, ["no such file"]),
        (_dangling, ["link whose target is missing", "SHA256E-s1", "datalad get", "git annex get"]),
        (_below_dangling, ["link whose target is missing", "unmounted"]),
        (_to_itself, ["leads to itself"]),
        (_folder, ["got a folder"]),
        (_pipe, ["pipe"]),
        (_long_name, ["long"]),
    ],
)
def test_r3_what_is_no_file_is_said(tmp_path: Path, make: Callable[[Path], Path], texts: list[str]) -> None:
    path = make(tmp_path)
    for message in (fails(path), _sha256_fails(path)):
        for text in texts:
            assert text in message
        assert "download it again" not in message


def _sha256_fails(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        sha256(path)
    return str(caught.value)


def test_r3_a_file_that_may_not_be_read(file: Path) -> None:
    message = fails(file, PermissionError(13, "Permission denied", str(file)))
    assert message == f"{file}: cannot be read (Permission denied); change its permissions, or ask its owner."


@pytest.mark.parametrize("letter", ["x", "ß", "体"])
@pytest.mark.parametrize("number", [230, 240, 255])
def test_r3_a_name_as_long_as_names_may_be_is_written(tmp_path: Path, letter: str, number: int) -> None:
    size = len(letter.encode())
    path = tmp_path / (letter * ((number - 7) // size) + ".nii.gz")
    with atomic_write(path) as temporary:
        assert temporary.name.startswith(".tmp-")
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def fail_to_write(path: Path, problem: BaseException | None, *, leave_folder: bool) -> None:
    with atomic_write(path) as temporary:
        if leave_folder:
            temporary.mkdir()  # which unlink cannot remove
        if problem is not None:
            raise problem


def test_r3_a_longer_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written \(File name too long\); choose a shorter name"):
        fail_to_write(tmp_path / ("x" * 250 + ".nii.gz"), KeyError("entered"), leave_folder=False)
    assert not list(tmp_path.iterdir())


def test_r3_cleaning_up_never_replaces_the_error_under_way(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="the true cause"):
        fail_to_write(tmp_path / "a", KeyError("the true cause"), leave_folder=True)
    with pytest.raises(DataError, match="quota"):
        fail_to_write(tmp_path / "b", OSError(errno.EDQUOT, "Disk quota exceeded"), leave_folder=True)


def test_r3_a_lock_below_a_file_is_an_error_that_names_it(file: Path) -> None:
    with pytest.raises(DataError, match=r"a\.bin/lock: cannot be written"), exclusive(file / "lock"):
        pass


def test_r3_deep_json_is_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with (
        pytest.raises(DataError, match=r"deep\.json: expected JSON"),
        reading(tmp_path / "deep.json", "JSON"),
    ):
        json.loads((tmp_path / "deep.json").read_text())
