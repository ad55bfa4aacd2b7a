"""Masks that a model draws: from label maps through both stages to `generate masks` and `generate patients`."""

import json
from pathlib import Path

import numpy as np
import pytest

from prod9.volumes import read
from tests.harness import STAGE2, Workspace, label_maps, later_models, mask_model, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mask_model(tmp_path_factory.getbasetemp())


def draw(model: Path, out: Path, *more: object) -> dict[str, dict[str, object]]:
    ran = run("prod9", "generate", "masks", "--model", model, "-o", out, "--json", *more)
    assert ran.code == 0, ran.err
    return json.loads((out / "manifest.json").read_text())["files"]


def test_masks_lie_in_the_box_of_their_brain(workspace: Workspace, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    notes = draw(model, out, "-n", 2, "--volume", 3, "--side", "left")
    assert sorted(notes) == ["mask_0000_seg.nii.gz", "mask_0001_seg.nii.gz"]
    for name, note in notes.items():
        seen = read(out / name)
        assert seen.data.any()
        assert set(np.unique(seen.data)) <= {0, 1, 2, 3, 4}
        assert max(seen.data.shape) <= 16
        asked = note["asked"]
        assert isinstance(asked, dict)
        assert asked["volume_ml"] == pytest.approx(3, rel=1e-3)
        assert asked["right"] <= 0.5
    first = (out / "mask_0000_seg.nii.gz").read_bytes()
    draw(model, out, "-n", 3, "--volume", 3, "--side", "left")
    assert (out / "mask_0000_seg.nii.gz").read_bytes() == first
    alone = tmp_path / "alone"
    draw(model, alone, "-n", 1, "--volume", 3, "--side", "left", "--seed", 1, "--training", workspace.cohort)
    one, other = (read(folder / name).data for folder, name in (
        (alone, "mask_0000_seg.nii.gz"), (out, "mask_0001_seg.nii.gz")))  # fmt: skip
    np.testing.assert_array_equal(one, other)


def test_parts_draw_what_the_whole_draws(model: Path, tmp_path: Path) -> None:
    draw(model, tmp_path / "whole", "-n", 3)
    for part in ("1/2", "2/2"):
        assert (
            run(
                "prod9", "generate", "masks", "-m", model, "-n", 3, "-o", tmp_path / "parts", "--part", part
            ).code
            == 0
        )
    assert run("prod9", "merge", tmp_path / "parts").code == 0
    for file in (tmp_path / "whole").glob("*.nii.gz"):
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()


def test_patients_follow_drawn_masks(
    workspace: Workspace, model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    translator, control = later_models(tmp_path_factory.getbasetemp())
    models = ("--model", workspace.run2, "--in-context", translator, "--control", control)
    asked = ("generate", "patients", *models, "--seg", "auto", "--draw-masks", model, "--no-refine")
    ran = run("prod9", *asked, "-n", 1, "-o", tmp_path / "made", "--json")
    assert ran.code == 0, ran.err
    (seg,) = (tmp_path / "made").rglob("*-seg.nii.gz")
    assert read(seg).data.any()
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert manifest["settings"]["masks"]["sha256"]["transformer"]
    assert (
        manifest["files"][str(seg.relative_to(tmp_path / "made"))]["segmentation"]
        == "drawn, mask 0 of seed 0"
    )
    again = run("prod9", *asked, "-n", 1, "-o", tmp_path / "made", "--json")
    assert again.json["made"] == []
    for wrong in (
        ("--draw-masks", model),
        ("--seg", "auto"),
        ("--seg", workspace.cohort, "--training", workspace.cohort),
    ):
        ran = run("prod9", "generate", "patients", *models, *wrong, "-n", 1, "-o", tmp_path / "x")
        assert ran.code == 2, wrong
        assert wrong[-2] in ran.err or "--draw-masks" in ran.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ((), "--model or --vary"),
        (("--vary", "x", "--volume", 3), "--volume"),
        (("--model", "{model}", "--keep-grid"), "--keep-grid"),
        (("--model", "{model}", "--side", "up"), "left or right"),
        (("--model", "{model}", "--volume", 5000), "--volume"),
        (("--model", "{scans}"), "got one of scans"),
    ],
)
def test_what_is_refused(
    workspace: Workspace, model: Path, tmp_path: Path, more: tuple[object, ...], text: str
) -> None:
    given = [str(one).format(model=model, scans=workspace.run2) for one in more]
    ran = run("prod9", "generate", "masks", *given, "-o", tmp_path / "x")
    assert ran.code == 2, ran.err
    assert text in ran.err
    assert not (tmp_path / "x").exists()


def test_models_of_label_maps_make_no_scans(model: Path, workspace: Workspace, tmp_path: Path) -> None:
    ran = run("prod9", "generate", "label", "-m", model, "-o", tmp_path / "x")
    assert ran.code != 0
    assert "generate masks" in ran.err
    infer = ("infer", workspace.cohort, "-m", model.parent / "masks_stage1", "-o", tmp_path / "x")
    assert run("prod9-train-autoencoder", *infer).code != 0
    config = tmp_path / "mixed.yaml"
    config.write_text(label_maps(STAGE2, workspace.folder, workspace.cohort))
    ran = run(
        "prod9-train-transformer", "train", "--config", config, "--output-dir", tmp_path / "y", "--check"
    )
    assert ran.code == 2
    assert "autoencoder of label maps" in ran.err
