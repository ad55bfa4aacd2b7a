"""The demo's last part: masks of a model, their scores, and patients under them, each with its picture."""

import shutil
from pathlib import Path

import pytest

from prod9.data.layouts.find import find_cases
from prod9.data.splits import Split
from prod9.demo.masks import DemoMasks, draw_picture
from prod9.demo.patients import draw_made, make_patients
from prod9.evaluation.judges.networks import build_seeded
from prod9.evaluation.judges.segmenter import Segmenter, TumourUNet
from prod9.measures.slices import View
from prod9.pipelines.patients import PatientPipeline
from tests.harness import later_models, mask_model, trained

VIEW = View(spacing=(4.0, 4.0, 4.0))


def test_masks_are_drawn_scored_and_followed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()
    workspace = trained(base)
    run = shutil.copytree(mask_model(base), tmp_path / "run")
    patients = [case.patient_id for case in find_cases(workspace.cohort)]
    Split(tuple(patients), (), ()).save(run / "split.json")  # a floor takes four with a lesion
    masks = DemoMasks(run, workspace.cohort, tmp_path / "masks", num=4, seed=0)
    told: list[tuple[int, int]] = []
    scores = masks.draw("cpu", lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert scores.keys() >= {"volume", "volume_floor", "place", "place_floor", "highest_dice", "copies"}
    draw_picture(masks, tmp_path / "masks.png", view=VIEW, cohort="Of a test.")

    translator, control = later_models(base)
    pipeline = PatientPipeline.from_checkpoints(workspace.run2, translator, controls=[control], device="cpu")
    segmenter = Segmenter(build_seeded(TumourUNet, seed=0).eval())
    made = make_patients(
        pipeline,
        masks.segmentations()[:1],
        tmp_path / "patients",
        segmenter_of=lambda label: segmenter,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert made["made"] == len(made["dice"]) == 1
    assert told[-1] == (1, 1)
    (case,) = find_cases(tmp_path / "patients")
    assert set(case.images) == {"T1", "T1ce", "T2", "FLAIR"}
    assert case.seg is not None
    draw_made(tmp_path / "patients", tmp_path / "made.png", dice=made["dice"], view=VIEW)
    for name in ("masks", "made"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
