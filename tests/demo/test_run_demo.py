"""The demo, whole, at a size where the pictures are noise but every file and number is there."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from prod9.data.simulated.cohort import simulate_cohort
from prod9.demo import scores as demo_scores
from prod9.demo.plan import make_plan
from prod9.demo.steps import Reporter, _Demo, run_demo
from prod9.evaluation.report.pictures import CONTROL, GENERATED, LATER, MONTAGE, PICTURES, REMOVAL


@contextmanager
def silent_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample a few times only: 200 took a quarter of these tests."""
    monkeypatch.setattr(demo_scores, "REPLICATES", 10)


def is_share(value: float, of: int) -> bool:
    """Whether ``value`` is a whole number of ``of`` things."""
    return value * of == pytest.approx(round(value * of), abs=1e-6)


def check_control(control: dict[str, Any], folder: Path) -> None:
    """Scores are means over both modalities, and each segmentation steered a volume of each."""
    for key, kind in (("dice_whole_tumour", "controlled"), ("dice_whole_tumour_base", "base")):
        assert control[key] == pytest.approx(np.mean([control[name][kind] for name in ("T1ce", "FLAIR")]))
        interval = control["intervals"][key]
        assert (interval is None) == (control["patients"] < 2), "one patient says nothing of others"
        assert interval is None or interval[0] <= control[key] <= interval[1]
    by_class = control["dice_by_class"]
    assert by_class, "some patient has a tumour"
    assert set(by_class) <= {"whole_tumour", "tumour_core", "enhancing"}
    for scores in by_class.values():
        assert {"controlled", "base", "reconstructions", "real", "share", "interval"} == set(scores)
        assert 0.0 <= scores["controlled"] <= 1.0
    steered = {name: len(list(folder.glob(f"{name}_*.nii.gz"))) for name in ("seg", "T1ce", "FLAIR")}
    assert set(steered.values()) == {steered["seg"]}
    assert steered["seg"] >= control["patients"] >= 1


@pytest.mark.slow
def test_it_leaves_volumes_pictures_and_scores_and_goes_on(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path, quick=True, stages="all"), budget=0.05, judge_steps=4)
    said: list[str] = []
    report = Reporter(say=said.append, bar=silent_bar)
    block = run_demo(plan, report=report, device="cpu")

    stage1, stage2 = block["stages"]["stage1"], block["stages"]["stage2_label"]
    assert 0 < stage1["psnr_brain"] < 40
    assert 0 < stage1["psnr_brain_pca"] < 40
    assert stage1["volumes"] == stage2["held_out_volumes"] > 0
    assert stage2["volumes"] == 4 * plan.volumes_per_modality
    assert is_share(stage2["modality_accuracy"], stage2["volumes"])
    assert stage2["frechet_ratio"] > 0
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert written["stages"] == written["from_scratch"]["stages"] == block["stages"]

    volumes = sorted((tmp_path / "from_scratch" / "volumes").glob("*.nii.gz"))
    assert len(volumes) == 4 * plan.volumes_per_modality
    image = nib.load(volumes[0])
    assert image.shape == plan.stage1().data.grid
    np.testing.assert_allclose(image.header.get_zooms(), plan.spacing_mm, rtol=1e-5)
    translation, control = block["stages"]["translation"], block["stages"]["control"]
    assert set(translation) == {"T1", "T1ce", "T2", "FLAIR"}
    assert set(translation["FLAIR"]["rows"]) == {"tokens", "sources", "both"}
    assert translation["FLAIR"].keys() >= {"psnr_brain", "ssim_tumour", "copy_psnr_brain", "dice_drop"}
    check_control(control, tmp_path / "from_scratch" / "control")
    assert len(list((tmp_path / "from_scratch" / "translation").glob("FLAIR_*.nii.gz"))) > 0
    for picture in PICTURES:
        if picture in LATER.values() and not (tmp_path / picture.file).exists():
            assert any(line.startswith("No masks: ") for line in said), (
                "so short a training may teach no lesion"
            )
            continue
        assert (tmp_path / picture.file).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Real, held out" in page
    # The cohort is too small for an audit, and the page says how to get one.
    assert "prod9 audit --run" in page

    # Started again, it finds everything done: one volume that was lost is made again, the same as before.
    before = np.asarray(image.dataobj)
    volumes[0].unlink()
    again = run_demo(plan, report=report, device="cpu")
    assert again["stages"] == block["stages"]
    np.testing.assert_array_equal(np.asarray(nib.load(volumes[0]).dataobj), before)


@pytest.mark.slow
def test_the_other_family_leaves_the_same_files_and_scores(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, quick=True, family="maisi", stages="all")
    plan = replace(plan, budget=0.05, judge_steps=4)
    report = Reporter(say=lambda text: None, bar=silent_bar)
    block = run_demo(plan, report=report, device="cpu")

    vae, flow = block["stages"]["maisi_vae"], block["stages"]["maisi_diffusion"]
    assert 0 < vae["psnr_brain"] < 40
    assert 0 < vae["psnr_brain_pca"] < 40
    assert vae["volumes"] == flow["held_out_volumes"] > 0
    assert flow.keys() >= {"modality_accuracy", "diversity_ratio", "frechet_ratio", "lesion_share"}
    written = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert written["stages"] == written["maisi_from_scratch"]["stages"] == block["stages"]
    volumes = sorted((tmp_path / "maisi_from_scratch" / "volumes").glob("*.nii.gz"))
    assert [v.name for v in volumes[:2]] == ["FLAIR_0000.nii.gz", "FLAIR_0001.nii.gz"]
    assert len(volumes) == 4 * plan.volumes_per_modality
    check_control(block["stages"]["control"], tmp_path / "maisi_from_scratch" / "control")
    for picture in (CONTROL, MONTAGE, GENERATED):
        assert (tmp_path / picture.file).read_bytes().startswith(b"\x89PNG")
    assert run_demo(plan, report=report, device="cpu")["stages"] == block["stages"]


@pytest.mark.slow
def test_a_first_picture_is_there_before_anything_is_trained(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, num_patients=14)
    simulate_cohort(plan.data_dir, num_subjects=14, spacing_mm=plan.spacing_mm, seed=plan.seed)
    said: list[str] = []
    demo = _Demo(plan, Reporter(say=said.append, bar=silent_bar), "cpu")
    demo._show_first(plan.stage1())
    picture = tmp_path / REMOVAL.file
    assert said == [f"First picture, by the packaged weights: {picture}"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    demo._show_first(plan.stage1())  # once is enough: a demo that goes on keeps its pictures
    assert len(said) == 1
