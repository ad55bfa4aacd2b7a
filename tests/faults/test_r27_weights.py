"""Published weights: a missing file is said first, and nobody is told to unpickle anything."""

import pickle
from pathlib import Path

import pytest
import torch

from tests.harness import run

NAMES = {"alex": "alexnet-owt-7be5be79.pth", "medicalnet_resnet10_23datasets": "resnet_10_23dataset.pth"}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/evil-weights-of-a-test"),))


def write(path, what):
    match what:
        case "pickle":
            path.write_bytes(pickle.dumps(Evil()))
        case "torch":
            torch.save({"features.0.weight": Evil()}, path)
        case "list":
            torch.save([1, 2], path)
        case "bytes":
            path.write_bytes(b"\x80\x02" + b"nonsense" * 20)
        case "empty":
            path.write_bytes(b"")


@pytest.mark.parametrize("command", ["import", "verify"])
@pytest.mark.parametrize("name", ["nofile.pt", "autoencoder_v1.pt", NAMES["alex"]])
def test_d_a_file_that_is_not_there_is_said_first(tmp_path, command, name):
    for options in ((), ("--name", "alex"), ("--name", "autoencoder_v1")):
        ran = run("prod9", "weights", command, tmp_path / name, *options)
        assert ran.code in (1, 2)
        assert f"{tmp_path / name}: expected a file of weights, got no such file" in ran.err
        assert "NOT AS PUBLISHED" not in ran.out, "nothing was compared"


def test_d_a_folder_is_no_file(tmp_path):
    assert "got a folder" in run("prod9", "weights", "import", tmp_path).err


@pytest.mark.parametrize("what", ["pickle", "torch", "list", "bytes", "empty"])
@pytest.mark.parametrize("network", NAMES)
def test_r27_nothing_is_unpickled_and_nobody_is_told_to(tmp_path, what, network, monkeypatch):
    monkeypatch.setenv("PROD9_WEIGHTS_DIR", str(tmp_path / "weights"))
    file = tmp_path / NAMES[network]
    write(file, what)
    for command in ("import", "verify"):
        ran = run("prod9", "weights", command, file)
        assert ran.code in (1, 2)
        assert str(file) in ran.err
        assert "weights_only" not in ran.err
        assert "Re-running" not in ran.err
    assert not Path("/tmp/evil-weights-of-a-test").exists()
    assert not (tmp_path / "weights" / file.name).exists()
