"""The container's entry point, as a plain program in folders of the challenge's form, without a network."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9 import volumes
from prod9.cli.challenge.entry import main
from tests.cli.test_parts import ROOT
from tests.harness import Workspace, later_models


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    translator = later_models(tmp_path_factory.getbasetemp())[0]
    monkeypatch.setenv("PROD9_MODEL", str(translator))
    return translator


def test_each_case_gets_what_it_lacks(
    workspace: Workspace,
    model: Path,
    offline: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = sorted(workspace.cohort.iterdir())
    data, output = tmp_path / "in", tmp_path / "out"
    for case, missing in zip(cases[:2], ("t2f", "t1n"), strict=True):
        (data / case.name).mkdir(parents=True)
        for word in {"t1n", "t1c", "t2w", "t2f"} - {missing}:
            shutil.copy(case / f"{case.name}-{word}.nii.gz", data / case.name)
    drawn = cases[2].name
    (data / drawn).mkdir()
    source = volumes.read(cases[2] / f"{drawn}-t1n.nii.gz")
    region = np.zeros(source.header.shape)
    region[6:10, 7:11, 5:9] = 1
    voided = np.where(region > 0, 0, source.data)
    volumes.write(data / drawn / f"{drawn}-t1n-voided.nii.gz", voided, source.header)
    volumes.write(data / drawn / f"{drawn}-mask.nii.gz", region, source.header, dtype=np.uint8)

    (tmp_path / "to_draw").mkdir()
    drawing = shutil.move(data / drawn, tmp_path / "to_draw" / drawn)
    ignored = "--parameters_file=/mlcube_io3/p.yml"
    assert main(["infer", f"--data_path={data}", f"--output_path={output}", ignored]) == 0, (
        capsys.readouterr()
    )
    assert ignored in capsys.readouterr().err
    assert sorted(path.name for path in output.iterdir()) == [
        f"{cases[0].name}-t2f.nii.gz",
        f"{cases[1].name}-t1n.nii.gz",
    ]
    monkeypatch.setenv("PROD9_MODEL", str(workspace.run2))
    assert main([f"--data_path={Path(drawing).parent}", f"--output_path={output}"]) == 0, capsys.readouterr()
    assert len(list(output.iterdir())) == 3
    for path in output.iterdir():
        assert np.count_nonzero(np.asarray(nib.load(path).dataobj)) > 0
        np.testing.assert_array_equal(nib.load(path).affine, source.header.affine)
    made = volumes.read(output / f"{drawn}-t1n-inference.nii.gz").data
    np.testing.assert_array_equal(made[region == 0], voided[region == 0].astype(np.float32))


def test_what_fits_no_task_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(data: Path) -> str:
        assert main(["--data_path", str(data), "--output_path", str(tmp_path / "out")]) == 1
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "mount it" in refused(tmp_path / "none")
    data = tmp_path / "in"
    data.mkdir()
    assert "expected a folder per case" in refused(data)
    (data / "A").mkdir()
    (data / "A" / "A-t1n.nii.gz").touch()
    assert "A-t1n-voided.nii.gz" in refused(data)
    for word in ("t1c", "t2w"):
        (data / "A" / f"A-{word}.nii.gz").touch()
    monkeypatch.setenv("PROD9_MODEL", str(tmp_path / "gone"))
    assert "gone" in refused(data)


def test_the_recipes_name_what_is_there() -> None:
    docker = (ROOT / "container" / "Dockerfile").read_text()
    recipe = (ROOT / "container" / "prod9.def").read_text()
    for name in re.findall(r"^COPY ((?:[\w.]+ )+)/prod9", docker, re.MULTILINE):
        assert all((ROOT / part).exists() for part in name.split()), name
    for text in (docker, recipe):
        assert "prod9.cli.challenge.entry" in text
        assert "PROD9_MODEL" in text
    script = recipe.partition("%runscript")[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
