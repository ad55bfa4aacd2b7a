"""MedMNIST3D files: read without trust, fetched whole or not at all."""

import hashlib
import io
import logging
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prod9.config.data import MEDMNIST3D_CLASSES
from prod9.data.datasets.medmnist import MedMNIST3DVolumes
from prod9.data.layouts import medmnist
from prod9.data.layouts.medmnist import file_name, open_medmnist3d, padded
from prod9.errors import DataError, MissingDependencyError
from tests.fixtures import write_medmnist3d

NAME = "organmnist3d"


@pytest.mark.parametrize("name", MEDMNIST3D_CLASSES)
@pytest.mark.parametrize("size", [28, 64])
def test_every_set_and_size(tmp_path: Path, name: str, size: int) -> None:
    classes = len(MEDMNIST3D_CLASSES[name])
    path = write_medmnist3d(tmp_path, (3, 1, 2), name=name, size=size, num_classes=classes)
    assert path.name == file_name(name, size)
    file = open_medmnist3d(tmp_path, name, size)
    assert file.counts == {"train": 3, "val": 1, "test": 2}
    images, labels = file.read("train", classes)
    assert (images.shape, images.dtype) == ((3, size, size, size), np.uint8)
    assert labels.tolist() == [k % classes for k in range(3)]
    assert not medmnist.is_published(path)


def test_names_of_samples_do_not_clash(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path)
    file = open_medmnist3d(tmp_path, NAME, 28)
    names = [name for part in ("train", "val", "test") for name in file.identities(part)]
    assert len(set(names)) == len(names) == 12
    assert names[0] == "organmnist3d-train-00000"


@pytest.mark.parametrize("grid", [(32, 32, 32), (28, 30, 33)])
def test_padding_is_even_and_exact(grid: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 28), dtype=np.uint8)
    out = padded(image, grid)
    assert (out.shape, out.dtype) == (grid, np.uint16)
    starts = [(side - 28) // 2 for side in grid]
    inside = out[tuple(slice(start, start + 28) for start in starts)]
    np.testing.assert_array_equal(inside.astype(np.float64) / 65535, image / 255)
    assert out.sum(dtype=np.int64) == inside.sum(dtype=np.int64)


def test_volumes_of_a_part(tmp_path: Path) -> None:
    write_medmnist3d(tmp_path)
    file = open_medmnist3d(tmp_path, NAME, 28)
    volumes = MedMNIST3DVolumes(
        *file.read("train", 11), file.identities("train"), MEDMNIST3D_CLASSES[NAME], (32,) * 3
    )
    assert len(volumes) == 6
    assert volumes[2].shape == (32, 32, 32)
    assert volumes.class_name(2) == "kidney-left"


# ---- files that must be refused ----


def test_a_missing_file_is_named_with_its_checksum(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a0c5a1ff56af4f155c46d46fbb45a2fe") as caught:
        open_medmnist3d(tmp_path, NAME, 28)
    for text in (str(tmp_path / "organmnist3d.npz"), "place it there", "data.download=true"):
        assert text in str(caught.value)


def _save(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)


def test_other_sizes_types_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "organmnist3d.npz"
    good = {f"{p}_images": np.zeros((1, 28, 28, 28), np.uint8) for p in ("train", "val", "test")}
    good |= {f"{p}_labels": np.zeros((1, 1), np.uint8) for p in ("train", "val", "test")}
    for change in (
        {"train_images": np.zeros((1, 28, 28), np.uint8)},
        {"train_images": np.zeros((1, 28, 28, 28), np.float32)},
        {"val_labels": np.zeros((2, 1), np.uint8)},
    ):
        _save(path, **(good | change))
        with pytest.raises(DataError, match=r"expected (train|val)_images uint8 \[N 28 28 28\]"):
            open_medmnist3d(tmp_path, NAME, 28)
    _save(path, **{k: v for k, v in good.items() if k != "test_images"})
    with pytest.raises(DataError, match="test_images"):
        open_medmnist3d(tmp_path, NAME, 28)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    arrays = {f"{p}_{k}": np.array([Payload()], dtype=object) for p in ("train", "val", "test") for k in
              ("images", "labels")}  # fmt: skip
    np.savez(tmp_path / "organmnist3d.npz", **arrays)
    with pytest.raises(DataError, match="expected a MedMNIST3D file"):
        open_medmnist3d(tmp_path, NAME, 28)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04broken"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "organmnist3d.npz").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        open_medmnist3d(tmp_path, NAME, 28)


def test_damaged_content_and_foreign_labels(tmp_path: Path) -> None:
    path = write_medmnist3d(tmp_path)
    file = open_medmnist3d(tmp_path, NAME, 28)
    with pytest.raises(DataError, match="expected labels 0 to 1 for organmnist3d, got 2 in train sample 2"):
        file.read("train", 2)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("train_images.npy").header_offset + 400
    damaged = bytearray(path.read_bytes())
    damaged[place : place + 40] = bytes(40)
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="train is damaged"):
        file.read("train", 11)


def test_constant_samples_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {f"{p}_images": np.zeros((2, 28, 28, 28), np.uint8) for p in ("train", "val", "test")}
    arrays |= {f"{p}_labels": np.zeros((2, 1), np.uint8) for p in ("train", "val", "test")}
    arrays["train_images"][0, 3] = 9
    _save(tmp_path / "organmnist3d.npz", **arrays)
    with caplog.at_level(logging.WARNING):
        open_medmnist3d(tmp_path, NAME, 28).read("train", 11)
    assert "1 of 2 train samples are of one intensity" in caplog.text


# ---- fetching ----


class _Answer(io.BytesIO):
    headers = {"Content-Length": "7"}  # noqa: RUF012


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A network that answers what the test puts under ``answer``, and the package that knows the address."""
    state: dict[str, Any] = {"answer": b"content", "asked": []}
    package, info = ModuleType("medmnist"), ModuleType("medmnist.info")
    info.INFO = {NAME: {"url": "somewhere/28", "url_64": "somewhere/64"}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "medmnist", package)
    monkeypatch.setitem(sys.modules, "medmnist.info", info)

    def urlopen(address: str, timeout: float) -> _Answer:
        state["asked"].append((address, timeout))
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return _Answer(state["answer"])

    monkeypatch.setattr(medmnist.urllib.request, "urlopen", urlopen)
    return state


def test_a_file_is_fetched_with_progress(
    tmp_path: Path, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_medmnist3d(tmp_path / "there", size=64).read_bytes()
    network["answer"] = whole
    monkeypatch.setitem(medmnist._MD5, "organmnist3d_64", hashlib.md5(whole).hexdigest())  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []
    file = open_medmnist3d(
        tmp_path / "here", NAME, 64, download=True, progress=lambda d, t: seen.append((d, t))
    )
    assert file.path.read_bytes() == whole
    assert seen[-1] == (len(whole), 7)
    assert network["asked"] == [("somewhere/64", 30)]
    open_medmnist3d(tmp_path / "here", NAME, 64, download=True)
    assert len(network["asked"]) == 1, "what is there is not fetched again"


def test_another_file_is_not_kept(tmp_path: Path, network: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected a file of MD5 a0c5a1ff"):
        open_medmnist3d(tmp_path, NAME, 28, download=True)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_file_to_place_is_named(tmp_path: Path, network: dict[str, Any]) -> None:
    network["answer"] = OSError("Name or service not known")
    with pytest.raises(DataError, match="the download failed") as caught:
        open_medmnist3d(tmp_path, NAME, 28, download=True)
    for text in (
        "Name or service not known",
        str(tmp_path / "organmnist3d.npz"),
        "a0c5a1ff56af4f155c46d46fbb45a2fe",
    ):
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_install_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist.info", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'prod9\[medmnist\]'"):
        open_medmnist3d(tmp_path, NAME, 28, download=True)
