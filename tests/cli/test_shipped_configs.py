"""Every config in the package trains for one step through its command, shrunk by a committed list.

Any of the tests may run alone and in any order: what a config builds on is trained first, once.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from prod9.config.load import load_config, merge_config, shipped_configs
from prod9.stages import STAGES
from tests.fixtures import write_brats_tree, write_medmnist3d
from tests.harness import Ran, run

SHRINKS = yaml.safe_load((Path(__file__).parents[1] / "architecture" / "shrinks.yaml").read_text())
DATA = Path("outputs/demo/data")
STARTS = {
    "demo/stage1_sharp": "demo/stage1",
    "demo/starter/stage1": "demo/stage1",
    "demo/maisi_few_steps": "demo/maisi_diffusion",
    "maisi/diffusion/brats_few_steps": "maisi/diffusion/brats",
}
"""Configs that start from the weights of another."""


@cache
def merged(name: str) -> dict[str, Any]:
    return merge_config(shipped_configs()[name])


def bases(name: str) -> list[str]:
    """Return the shipped configs that write where the inputs of ``name`` are read."""
    wanted = (merged(name).get("inputs") or {}).values()
    return [other for other in shipped_configs() if merged(other)["output_dir"] in wanted]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the demo's cohort, which is also the BraTS folder."""
    folder = tmp_path_factory.mktemp("shipped")
    write_brats_tree(folder / DATA, 5)
    write_medmnist3d(folder / "medmnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BRATS_DIR", str(folder / DATA))
        patch.setenv("MEDMNIST_DIR", str(folder / "medmnist"))
        yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Ran]:
    """Train a shipped config for a step after what it builds on; each is trained once."""

    @cache
    def train(name: str) -> Ran:
        for base in bases(name):
            assert train(base).code == 0, f"{base}: {train(base).err}"
        changes = [f"--set={change}" for group in SHRINKS[name].values() for change in group]
        if name in STARTS:
            assert train(STARTS[name]).code == 0
            changes += ["--init-from", str(load_config(STARTS[name]).output_dir)]
        command = STAGES[merged(name)["stage"]].command
        return run(command, "train", "--config", name, *changes, "--json")

    return train


def test_every_config_has_its_shrinks() -> None:
    assert shipped_configs().keys() <= SHRINKS.keys()


def test_inputs_are_outputs_of_shipped_configs() -> None:
    for name in shipped_configs():
        assert len(bases(name)) == len(merged(name).get("inputs") or {}), name


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_one_step(name: str, folder: Path, trained: Callable[[str], Ran]) -> None:
    ran = trained(name)
    assert ran.code == 0, ran.err
    assert ran.json["step"] == 1
    assert Path(ran.json["checkpoint"]).is_file()
    data = [path for path in (folder / DATA).rglob("*") if path.is_file()]
    assert all(path.name.endswith(".nii.gz") for path in data), "runs stay out of the data"
