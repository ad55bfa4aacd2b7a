"""Every config in the package trains for one step through its command, shrunk by a committed list."""

import shutil
from pathlib import Path

import pytest
import yaml

from prod9.config.load import merge_config, shipped_configs
from prod9.stages import STAGES
from tests.fixtures import write_brats_tree, write_medmnist3d
from tests.harness import run

SHRINKS = yaml.safe_load((Path(__file__).parents[1] / "architecture" / "shrinks.yaml").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the demo's cohort, which is also the BraTS folder."""
    folder = tmp_path_factory.mktemp("shipped")
    write_brats_tree(folder / "outputs" / "demo" / "data", 7)
    write_medmnist3d(folder / "medmnist")
    return folder


def test_every_config_has_its_shrinks() -> None:
    assert shipped_configs().keys() <= SHRINKS.keys()


def _stage(name: str) -> str:
    return merge_config(shipped_configs()[name])["stage"]


ORDER = (
    "autoencoder",
    "maisi_vae",
    "transformer",
    "refiner",
    "maisi_diffusion",
    "maskgit_controlnet",
    "maisi_controlnet",
)
"""Earlier stages come first: later ones find them where their configs say."""


@pytest.mark.parametrize(
    "name", sorted(shipped_configs(), key=lambda name: (ORDER.index(_stage(name)), name))
)
def test_one_step(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BRATS_DIR", str(folder / "outputs" / "demo" / "data"))
    monkeypatch.setenv("MEDMNIST_DIR", str(folder / "medmnist"))
    stage = _stage(name)
    changes = [f"--set={change}" for group in SHRINKS[name].values() for change in group]
    ran = run(STAGES[stage].command, "train", "--config", name, *changes, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 1
    assert Path(ran.json["checkpoint"]).is_file()


def test_runs_stay_out_of_the_data(folder: Path) -> None:
    data = folder / "outputs" / "demo" / "data"
    assert all(path.name.endswith(".nii.gz") for path in data.rglob("*") if path.is_file())
    shutil.rmtree(folder)
