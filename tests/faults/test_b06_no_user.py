"""A user id without an entry in the system's list, and no HOME, as `docker run --user` gives them."""

import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from prod9.errors import ConfigError
from prod9.measures.weights import weight_folders
from prod9.system import machine
from tests.harness import run

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def nobody(*_: object) -> None:
    raise KeyError("getpwuid(): uid not found: 12345")


@pytest.fixture
def stranger(monkeypatch):
    for name in (
        *NAMES,
        "HOME",
        "XDG_CACHE_HOME",
        "TORCH_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "PROD9_WEIGHTS_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)


def test_b6_a_user_name_is_there_before_monai_asks(stranger, monkeypatch):
    monkeypatch.setenv("USER", "")  # so that what is set below is taken back
    monkeypatch.setenv("LOGNAME", "")
    machine.ensure_user_name()
    assert getpass.getuser() == f"user{os.getuid()}"


def test_b6_importing_prod9_is_enough():
    code = (
        "import os, pwd\n"
        "def nobody(*_): raise KeyError('uid not found')\n"
        "pwd.getpwuid = nobody\n"
        "import prod9, getpass\n"
        "print(getpass.getuser())"
    )
    clean = {k: v for k, v in os.environ.items() if k not in (*NAMES, "HOME")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("user")


def test_b6_a_name_that_is_known_stays(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    machine.ensure_user_name()
    assert os.environ["LOGNAME"] == "ada"


@pytest.mark.parametrize(
    "command", [("doctor",), ("doctor", "--json"), ("weights", "list", "--json"), ("configs", "list")]
)
def test_b6_commands_work_without_a_home(stranger, command):
    ran = run("prod9", *command)
    assert ran.code == 0, ran.err


def test_b6_without_a_home_only_named_folders_are_searched(stranger, monkeypatch, tmp_path):
    assert weight_folders() == []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weight_folders()[0] == tmp_path / "hub" / "checkpoints"


def test_b6_a_tilde_without_a_home_is_one_clear_error(stranger, monkeypatch):
    monkeypatch.setenv("LOGNAME", "user12345")  # as importing prod9 leaves it there
    with pytest.raises(ConfigError, match="set HOME"):
        machine.expand("~/models/run")
    ran = run("prod9", "generate", "label", "--model", "~/run", "-o", "out")
    assert ran.code == 2
    assert "set HOME" in ran.err


def test_b6_a_file_whose_name_starts_with_a_tilde_is_a_file():
    assert machine.expand("~no-such-user-here/x.nii") == Path("~no-such-user-here/x.nii")


def test_b6_home_is_asked_for_in_one_place():
    source = Path(machine.__file__).parent
    asking = [
        p for p in source.rglob("*.py") if ".expanduser(" in p.read_text() or "Path.home(" in p.read_text()
    ]
    assert asking == [source / "machine.py"]
