"""Nothing that is read runs code, and no message advises to let it."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prod9.config.yaml import read_yaml
from prod9.errors import ConfigError, Prod9Error
from prod9.models.checkpoint_manager import CheckpointManager
from tests.harness import run


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def archive(path: Path, payload: Payload) -> None:
    torch.save({"prod9": {"format": 1}, "state_dict": {"w": torch.ones(1)}, "x": payload}, path)


def legacy(path: Path, payload: Payload) -> None:
    torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def hidden_in_the_archive(path: Path, payload: Payload) -> None:
    torch.save({"w": torch.ones(1)}, path)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("archive/constants.pkl", pickle.dumps(payload))
        target.writestr("archive/code/__torch__.py", "import os\nos.mkdir('evil')\n")


@pytest.mark.parametrize("write", [archive, legacy, plain_pickle, hidden_in_the_archive])
def test_checkpoints(tmp_path: Path, write: Callable[[Path, Payload], None]) -> None:
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    write(path, Payload(marker))
    with pytest.raises(Prod9Error) as caught:
        CheckpointManager.open(path)
    assert not marker.exists()
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    ran = run("prod9", "export", path, tmp_path / "out")
    assert ran.code == 1
    assert "weights_only" not in ran.err
    assert not marker.exists()


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
DOCUMENTS = [
    "a: !!python/object/apply:os.mkdir [evil]",
    "a: !!python/name:os.system",
    "a: !new x",
    "a: &b [*b]",
    ALIASES,
    "a: " + "[" * 20_000,
    "a: 1\na: 2",
    "<<: {a: 1}\n? [a]\n: b",
]


@pytest.mark.parametrize("text", DOCUMENTS)
def test_configs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"evil\.yaml"):
        read_yaml(path)


def test_arrays_of_a_store(tmp_path: Path) -> None:
    from prod9.data.stores.latents import TokenStore
    from tests.data.test_latents import Encoder, build, make_items

    build(tmp_path / "store", make_items(1), Encoder())
    marker = tmp_path / "marker"
    (shard,) = (tmp_path / "store").glob("*.tokens.npy")
    with shard.open("wb") as file:
        np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(Prod9Error, match="damaged"):
        TokenStore.open(tmp_path / "store")
    assert not marker.exists()


def test_markup_and_control_codes_of_others(tmp_path: Path, capsys) -> None:
    from prod9.training.running.ending import say

    say(f"{tmp_path}/o[/]ut [bold]x[/bold] \x1b[2J is finished")
    told = capsys.readouterr().err
    assert "o[/]ut [bold]x[/bold]" in told
    assert "\x1b" not in told
