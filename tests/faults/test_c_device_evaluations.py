"""Every evaluation, with every judge and network that it trains or loads, on the pretend device: no device fault."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from prod9 import volumes
from prod9.data.splits import Split
from tests.cli.test_evaluate_anatomy import write_patients, write_steered
from tests.evaluation.audit_cohort import head, write_heads

FEW = ("--training-steps", 2, "--replicates", 2)
COUNT = 16


class Cohort(NamedTuple):
    """Folders of real and of made patients, and a split and a table of the real ones."""

    real: Path
    made: Path
    split: Path
    table: Path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("evaluated")
    real = write_patients(folder / "real", COUNT)
    made = write_patients(folder / "made", 3, first=300, names="BraTS-SYN")
    patients = tuple(f"BraTS-GLI-{k:05d}" for k in range(COUNT))
    Split(patients[:8], (), patients[8:]).save(folder / "split.json")
    rows = [f"{patient}-000,{30 + k}" for k, patient in enumerate(patients)]
    (folder / "table.csv").write_text("\n".join(["case,age", *rows]) + "\n")
    return Cohort(real, made, folder / "split.json", folder / "table.csv")


def scores(folder: Path) -> dict[str, float]:
    """Return the values of an evaluation by what they are of."""
    rows = json.loads((folder / "evaluation.json").read_text())["scores"]
    named = ((json.dumps([v for v in row.values() if isinstance(v, str)]), row) for row in rows)
    return {name: row["value"] for name, row in named if row["value"] is not None}


def test_images_are_compared_by_networks_of_a_run_and_by_trained_ones(cohort, workspace, waits_of, tmp_path):
    networks = [word for name in ("autoencoder", "classifier") for word in ("-x", name)]
    other, out = shutil.copytree(cohort.made, tmp_path / "other"), tmp_path / "out"
    waits_of(
        "evaluate", "images", other, cohort.made, *networks, "--autoencoder", workspace.run1,
        "--classifier-steps", 2, "--inception-score", "--replicates", 2, "-o", out,
    )  # fmt: skip
    found = scores(out)
    assert sum("frechet_3d" in name for name in found) >= 2
    assert all(np.isfinite(list(found.values())))


def test_lesions_are_found_in_steered_volumes(cohort, workspace, waits_of, tmp_path):
    steered = write_steered(tmp_path / "steered", 1, shown=True)
    waits_of(
        "evaluate", "control", cohort.real, steered, "--split", cohort.split, *FEW,
        "--autoencoder", workspace.run1, "-o", tmp_path / "out",
    )  # fmt: skip
    assert any("reconstruct" in name for name in scores(tmp_path / "out"))


@pytest.mark.parametrize("what", ["patients", "utility"])
def test_patients_are_judged_by_segmenters(what, cohort, waits_of, tmp_path):
    more = ("--modality", "T1ce", "--modality", "FLAIR", *(("--seeds", 1) if what == "utility" else ()))
    waits_of("evaluate", what, cohort.real, cohort.made, "--split", cohort.split, *FEW, *more, "-o", tmp_path)
    assert scores(tmp_path)


def test_numbers_are_read_from_volumes(cohort, waits_of, tmp_path):
    made, names = tmp_path / "made", [f"T1ce_{k:04d}.nii.gz" for k in range(3)]
    made.mkdir()
    patients = sorted(cohort.made.glob("*/*-t1c.nii.gz"))
    for name, source in zip(names, patients, strict=True):
        volumes.write(made / name, volumes.read(source).data, np.eye(4))
    files = {name: {"covariates": {"age": 30.0 + 2 * k}} for k, name in enumerate(names)}
    (made / "manifest.json").write_text(
        json.dumps({"settings": {"covariates": {"age": "30:40"}}, "files": files})
    )
    given = ("--table", cohort.table, "--split", cohort.split)
    waits_of("evaluate", "covariates", cohort.real, made, *given, *FEW, "-o", tmp_path / "out")
    assert scores(tmp_path / "out")


def test_copies_are_looked_for_in_latents(workspace, waits_of, tmp_path):
    heads = {"train": range(4), "heldout": range(100, 107), "generated": range(200, 202)}
    folders = {
        f"--{name}": write_heads(tmp_path / name, [head(k) for k in seeds]) for name, seeds in heads.items()
    }
    given = [word for pair in folders.items() for word in pair]
    model = ("--model", workspace.run1, "--false-alarms", 0.3, "--max-share", 1.0)
    waits_of("audit", *given, *model, "-o", tmp_path / "out")
    assert "latents" in (tmp_path / "out" / "audit.json").read_text()
