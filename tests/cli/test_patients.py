"""``prod9 generate patients``: from trained models to a folder that training reads."""

import json
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

from prod9.data.layouts.find import find_cases
from tests.harness import CONTROL, Ran, Workspace, later_models, run


class Models(NamedTuple):
    """Run folders: the label model, the translator, and a control network of each."""

    label: Path
    translator: Path
    controls: tuple[Path, Path]


@pytest.fixture(scope="module")
def models(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("patients")
    translator, control = later_models(tmp_path_factory.getbasetemp())
    config = folder / "control.yaml"
    text = CONTROL.format(folder=workspace.folder).replace(f"{workspace.folder}/stage2", str(translator))
    config.write_text(text, encoding="utf-8")
    command = ("prod9-train-maskgit-controlnet", "train", "--config", config)
    ran = run(*command, "--output-dir", folder / "control", "--set", "validation.num_volumes=0")
    assert ran.code == 0, ran.err
    return Models(workspace.run2, translator, (control, folder / "control"))


def patients(models: Models, out: Path, *args: object) -> Ran:
    return run(
        "prod9", "generate", "patients", "--model", models.label, "--in-context", models.translator,
        "-o", out, "--json", *args,
    )  # fmt: skip


def test_a_folder_that_training_accepts(workspace: Workspace, models: Models, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    steer = ["--seg", workspace.cohort, *(part for c in models.controls for part in ("--control", c))]
    ran = patients(models, out, "--num", 2, *steer)
    assert ran.code == 0, ran.err
    assert ran.json["made"] == ["BraTS-SYN-00000-000", "BraTS-SYN-00001-000"]
    cases = find_cases(out)
    assert [case.case_id for case in cases] == ran.json["made"]
    for case in cases:
        assert case.label_scheme == "brats2023"
        assert case.seg is not None
        truth = np.asarray(nib.load(case.seg).dataobj)
        assert truth.any()
        images = [nib.load(path) for path in case.images.values()]
        assert len(images) == 4
        heads = [np.asarray(image.dataobj) != 0 for image in images]
        for image, head in zip(images, heads, strict=True):
            assert image.get_data_dtype() == np.int16
            assert image.shape == truth.shape == (16, 16, 16)
            np.testing.assert_array_equal(image.affine, nib.load(case.seg).affine)
            assert np.array_equal(head, heads[0])
    assert "do not exist" in (out / "CARD.md").read_text()

    before = (out / _file(0, "t1c")).read_bytes()
    (out / _file(1, "t2f")).unlink()
    again = patients(models, out, "--num", 3, *steer)
    assert again.json["made"] == ["BraTS-SYN-00001-000", "BraTS-SYN-00002-000"]
    assert again.json["kept"] == 1
    assert (out / _file(0, "t1c")).read_bytes() == before
    other = patients(models, out, "--num", 3, *steer, "--seed", 1)
    assert other.code == 2
    assert "other settings" in other.err

    checked = run("prod9", "data", "check", out, "--deep", "--json")
    assert checked.code == 0, checked.out + checked.err
    changes = (f"data.root={out}", "training.max_steps=1", "data.batch_size=1")
    sets = [part for change in changes for part in ("--set", change)]
    trained = run(
        "prod9-train-autoencoder",
        "train",
        "--config",
        workspace.stage1,
        "--output-dir",
        tmp_path / "s",
        *sets,
    )
    assert trained.code == 0, trained.err


def _file(index: int, kind: str) -> str:
    return f"BraTS-SYN-{index:05d}-000/BraTS-SYN-{index:05d}-000-{kind}.nii.gz"


def test_patients_without_segmentation(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    ran = patients(models, out, "--num", 1, "--first", "FLAIR")
    assert ran.code == 0, ran.err
    (case,) = find_cases(out)
    assert case.seg is None
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["first"] == "FLAIR"
    assert {"label transformer", "in-context transformer"} <= set(manifest["settings"]["sha256"])


def test_what_does_not_belong_together_is_refused(
    workspace: Workspace, models: Models, tmp_path: Path
) -> None:
    out = tmp_path / "cohort"

    def refused(*args: object) -> str:
        ran = patients(models, out, "--num", 1, *args)
        assert ran.code == 2, ran.err
        assert not out.exists()
        return ran.err

    assert "--control RUN" in refused("--seg", workspace.cohort)
    assert "--seg DIR" in refused("--control", models.controls[0])
    twice = ("--control", models.controls[0], "--control", models.controls[0])
    assert "second one" in refused("--seg", workspace.cohort, *twice)
    assert "T1, T1ce, T2, FLAIR" in refused("--first", "PET")
    swapped = run(
        "prod9", "generate", "patients", "--num", 1, "--model", models.translator,
        "--in-context", models.translator, "-o", out,
    )  # fmt: skip
    assert swapped.code == 2
    assert "label_conditional" in swapped.err


def test_check_writes_nothing(models: Models, tmp_path: Path) -> None:
    ran = patients(models, tmp_path / "out", "--num", 5, "--check")
    assert ran.code == 0, ran.err
    assert ran.json["order"] == "T2, then T1, then T1ce, then FLAIR"
    assert ran.json["control"] == "none"
    assert not (tmp_path / "out").exists()
