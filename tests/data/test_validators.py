"""What other programs demand of the folders that prod9 writes: by form, and by the programs where there are any."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prod9.data.formats.convert import carry_out, plan_work
from prod9.data.formats.table import form_of
from prod9.data.layouts.find import find_cases
from tests.fixtures import write_brats_tree

CHECK = """
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    verify_dataset_integrity({folder!r}, num_processes=1)
"""
VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real and a synthetic patient for nnU-Net, both kinds in a folder each for BIDS."""
    base = tmp_path_factory.mktemp("validators")
    write_brats_tree(base / "real", 2)
    for path in sorted((base / "real").rglob("*.nii.gz"))[:5]:
        target = base / "made" / "BraTS-SYN-00000-000" / f"BraTS-SYN-00000-000-{path.name.rpartition('-')[2]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    real, made = (find_cases(base / name) for name in ("real", "made"))
    about = {"text": "For a test."}
    carry_out(plan_work(form_of("nnunet"), real, made, folds=2), base / "nnunet", about=about)
    carry_out(plan_work(form_of("bids"), real, []), base / "bids", about=about)
    carry_out(plan_work(form_of("bids"), [], made), base / "bids_made", about=about)
    return base


def test_nnunet_by_form(folders: Path) -> None:
    """Consecutive labels from 0; every channel of every case on the voxels of its labels; no other files."""
    root = folders / "nnunet"
    described = json.loads((root / "dataset.json").read_text())
    assert described.keys() >= {"labels", "channel_names", "numTraining", "file_ending"}
    values = sorted(described["labels"].values())
    assert values == list(range(len(values)))
    assert described["labels"]["background"] == 0
    assert list(described["channel_names"]) == [str(k) for k in range(len(described["channel_names"]))]
    ending = described["file_ending"]
    cases = {path.name.removesuffix(ending) for path in (root / "labelsTr").iterdir()}
    images = {path.name for path in (root / "imagesTr").iterdir()}
    channels = range(len(described["channel_names"]))
    assert images == {f"{case}_{k:04d}{ending}" for case in cases for k in channels}
    assert len(cases) == described["numTraining"] == 3
    for case in cases:
        seg = nib.load(root / "labelsTr" / f"{case}{ending}")
        assert set(np.unique(np.asarray(seg.dataobj))) <= set(values)
        for k in channels:
            image = nib.load(root / "imagesTr" / f"{case}_{k:04d}{ending}")
            assert image.shape == seg.shape
            np.testing.assert_allclose(image.affine, seg.affine)
            assert np.isfinite(np.asarray(image.dataobj)).all()


@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed here")
def test_nnunet_by_its_own_check(folders: Path, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(CHECK.format(folder=str(folders / "nnunet")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "verify_dataset_integrity Done" in done.stdout
    assert "Error" not in done.stdout
    assert "Warning" not in done.stdout


@pytest.mark.parametrize("name", ["bids", "bids_made"])
def test_bids_by_form(folders: Path, name: str) -> None:
    """Names of entities in their order, what every dataset states, and of derivatives what made them."""
    root = folders / name
    described = json.loads((root / "dataset_description.json").read_text())
    assert described.keys() >= {"Name", "BIDSVersion", "DatasetType"}
    assert described["DatasetType"] == ("raw" if name == "bids" else "derivative")
    if name == "bids_made":
        assert described["GeneratedBy"][0]["Name"] == "prod9"
    images = [path.relative_to(root) for path in root.glob("sub-*/**/*.nii.gz")]
    assert images
    entity = r"(?:_[a-z]+-[A-Za-z0-9]+)*"
    for path in images:
        subject, session = (next((p for p in path.parts if p.startswith(w)), "") for w in ("sub-", "ses-"))
        assert re.fullmatch(rf"sub-[A-Za-z0-9]+{entity}_[A-Za-z0-9]+\.nii\.gz", path.name)
        assert path.name.startswith("_".join(filter(None, [subject, session])))
        assert path.parent.name == "anat"
        if name == "bids_made":
            assert "_desc-" in path.name


@pytest.mark.skipif(not VALIDATOR.is_file(), reason="bids-validator-deno is not installed here")
@pytest.mark.parametrize("name", ["bids", "bids_made"])
def test_bids_by_its_own_validator(folders: Path, name: str) -> None:
    done = subprocess.run(
        [VALIDATOR, "--json", folders / name], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)["issues"]["issues"]
    assert not [one for one in found if one.get("severity") == "error"]
