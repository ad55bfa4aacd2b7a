"""Several commands that fill one folder at a time: nothing of another is lost, deleted or mixed."""

import json
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prod9.cli.generate.outputs import OutputFolder
from prod9.errors import ConfigError, DataError
from tests.harness import run


def fill(folder, word, count, barrier):
    with OutputFolder(Path(folder), {"seed": 0}) as out:
        barrier.wait()
        for k in range(count):
            with out.writing(f"{word}_{k:04d}.txt", label=word) as path:
                path.write_text(word)


def test_r4_every_entry_of_every_writer_is_in_the_manifest(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=fill, args=(tmp_path, word, 8, barrier)) for word in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["files"]) == {f"{word}_{k:04d}.txt" for word in "abcd" for k in range(8)}
    assert manifest["pending"] == []
    assert {path.name for path in tmp_path.iterdir()} == {*manifest["files"], "manifest.json"}


def test_r4_a_second_command_adds_to_what_the_first_one_made_meanwhile(tmp_path):
    with OutputFolder(tmp_path, {}) as first, OutputFolder(tmp_path, {}) as second:
        for folder, name in ((first, "a"), (second, "b"), (first, "c")):
            with folder.writing(name) as path:
                path.write_text(name)
    assert set(json.loads((tmp_path / "manifest.json").read_text())["files"]) == {"a", "b", "c"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_r4_other_settings_are_refused_while_another_is_writing(tmp_path, overwrite):
    with OutputFolder(tmp_path, {"seed": 0}) as first:
        with pytest.raises(ConfigError, match="another process"):
            OutputFolder(tmp_path, {"seed": 1}, overwrite=overwrite)
        with first.writing("a") as path:
            path.write_text("a")
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"seed": 0}


def test_r4_overwriting_is_allowed_when_nobody_writes(tmp_path):
    for seed in (0, 1):
        with OutputFolder(tmp_path, {"seed": seed}, overwrite=True) as folder, folder.writing("a") as path:
            path.write_text(str(seed))
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"seed": 1}


ORPHAN = """
import os, signal, sys
from pathlib import Path
from prod9.cli.generate.outputs import OutputFolder
from prod9.files import atomic_write
with OutputFolder(Path(sys.argv[1]), {}) as folder, folder.writing("case/a.nii.gz") as place:
    with atomic_write(place) as temporary:
        temporary.write_text("half")
        if sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        print("writing", flush=True)
        sys.stdin.read()
        temporary.write_text("whole")
"""


def writer(folder, how):
    return subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def temporaries(folder):
    return [path for path in folder.rglob(".tmp-*") if not path.name.endswith("-writer")]


def test_r26_what_a_killed_writer_left_is_swept_by_the_next(tmp_path):
    with writer(tmp_path, "die") as killed:
        assert killed.wait() == -signal.SIGKILL
    assert temporaries(tmp_path)
    stranger = tmp_path / ".tmp-0123456789ab-of-another-program"
    stranger.touch()
    with OutputFolder(tmp_path, {}) as folder:
        assert not folder.is_done("case/a.nii.gz")
    assert set(tmp_path.rglob(".tmp-*")) == {stranger}


def test_r26_a_manifest_that_was_never_finished_is_swept(tmp_path):
    (tmp_path / ".tmp-0123456789ab-manifest.json").touch()
    with OutputFolder(tmp_path, {}):
        pass
    assert not list(tmp_path.iterdir())


def test_r26_a_living_writer_keeps_its_temporary_files(tmp_path):
    with writer(tmp_path, "wait") as other:
        assert other.stdout.readline() == "writing\n"
        with OutputFolder(tmp_path, {}) as folder, folder.writing("b") as path:
            path.write_text("b")
        assert temporaries(tmp_path)
        other.communicate("", timeout=30)
        assert other.returncode == 0
    assert (tmp_path / "case" / "a.nii.gz").read_text() == "whole"
    assert set(json.loads((tmp_path / "manifest.json").read_text())["files"]) == {"case/a.nii.gz", "b"}
    assert not list(tmp_path.rglob(".tmp-*"))


def test_r8_a_manifest_leads_nowhere_else(tmp_path):
    out, outside = tmp_path / "out", tmp_path / ".tmp-0123456789ab-victim"
    out.mkdir()
    outside.touch()
    content = {"settings": {}, "files": {"../victim": {}, "/etc/passwd": {}}}
    (out / "manifest.json").write_text(json.dumps(content))
    with OutputFolder(out, {}) as folder:
        for name in ("../victim", "../../x/y", "/tmp/x"):
            with pytest.raises(DataError, match="expected a name"):
                folder.is_done(name)
            with pytest.raises(DataError, match="expected a name"), folder.writing(name):
                pass
    assert outside.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"settings": 1, "files": {}}', '{"settings": {}, "files": {"a": 3}}', "[" * 100_000,
             '{"settings": {}, "files": {}, "inputs": {"a": {"b": 1}}}', '{"settings": {}, "files": {}, "pending": 7}'],
)  # fmt: skip
def test_r17_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="expected the manifest"):
        OutputFolder(tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json"}
    with OutputFolder(tmp_path, {}, overwrite=True) as folder, folder.writing("a") as path:
        path.write_text("a")


def test_r4_generate_of_two_labels_into_one_folder(models, tmp_path):
    command = ("prod9", "generate", "label", "-m", models.label, "-o", tmp_path, "--json")
    with OutputFolder(tmp_path, {}):  # another one that has begun, with other settings
        assert run(*command, "--label", "T1").code == 2
    assert run(*command, "--label", "T1").code == 0
    assert run(*command, "--label", "T2").json["made"] == ["T2_0000.nii.gz"]
    assert run(*command, "--label", "T1", "--label", "T2").json["kept"] == 2
    assert run(*command, "--label", "T1", "--seed", 3).code == 2
