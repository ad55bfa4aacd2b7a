"""The report holds what a run recorded, and names what is missing."""

import gzip
import json
import re
from base64 import b64decode

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imsave

from prod9.errors import DataError
from prod9.evaluation.report.gather import find_runs, read_curves
from prod9.evaluation.report.page import Sources, write_report
from prod9.evaluation.report.pictures import PICTURES
from prod9.evaluation.report.scans import load_generated
from prod9.volumes import write
from tests.evaluation.report.folders import write_generated, write_run, write_whole


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_whole(tmp_path_factory.mktemp("report"))
    return write_report(run, run / "report.html").read_text()


def test_it_holds_the_run_its_curves_scores_and_hashes(page):
    for text in ("val/loss", "4 steps", "ab" * 32, "2.15.0", "label_conditional", "1 train, 0 val, 1 test"):
        assert text in page
    assert page.count("<polyline") >= 3  # loss of training and validation, accuracy
    assert "0.0123" in page
    assert "0.01 to 0.02" in page
    assert "unreliable" in page
    assert "frechet" not in page, "a score without a value, and no raw key"
    assert "kernel distance (KID) · features of a random network" in page
    assert "Not in this report" not in page


def test_it_shows_the_verdict_of_the_audit(page):
    assert "1 of 2" in page
    assert "failed" in page
    assert re.search(r"T1_0000.nii.gz</td><td>BraTS-GLI-00000-000 T1, mirrored", page)


def test_its_volumes_are_nifti_files_with_segmentation(page):
    scans = json.loads(re.search(r'id="scans">(.*?)</script>', page, re.DOTALL)[1])
    assert [(s["group"], s["modality"]) for s in scans] == [
        ("held-out", "T1"), ("held-out", "FLAIR"), ("generated", "T1"), ("generated", "FLAIR"),
    ]  # fmt: skip
    image = nib.Nifti1Image.from_bytes(gzip.decompress(b64decode(scans[0]["image"])))
    seg = nib.Nifti1Image.from_bytes(gzip.decompress(b64decode(scans[0]["seg"])))
    assert image.shape == seg.shape
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.affine, seg.affine)
    assert set(np.unique(seg.dataobj)) == {0, 1, 2, 3}
    assert np.asarray(image.dataobj).max() == 255
    voxel = np.linalg.inv(seg.affine) @ [*scans[0]["centre"], 1]
    inside = np.asarray(seg.dataobj)[tuple(np.round(voxel[:3]).astype(int))]
    assert inside > 0


def test_all_its_volumes_share_a_box_and_the_middle_of_the_head(page):
    scans = json.loads(re.search(r'id="scans">(.*?)</script>', page, re.DOTALL)[1])
    images = [nib.Nifti1Image.from_bytes(gzip.decompress(b64decode(scan["image"]))) for scan in scans]
    sizes = [np.asarray(i.shape) * i.header.get_zooms() for i in images]
    for image, size in zip(images, sizes, strict=True):
        assert (np.abs(size - sizes[0]) <= 2 * np.asarray(image.header.get_zooms())).all()
        head = np.argwhere(np.asarray(image.dataobj) > 40)
        middle = image.affine @ [*((head.min(0) + head.max(0)) / 2), 1]
        np.testing.assert_allclose(middle[:3], 0, atol=1e-3)


def test_pictures_of_a_demo_come_in_order_and_once(tmp_path):
    run = write_run(tmp_path / "demo", data=tmp_path / "nowhere")
    write_generated(tmp_path / "demo" / "volumes")
    for k, picture in enumerate(PICTURES):
        imsave(tmp_path / "demo" / picture.file, np.random.default_rng(k).random((4, 4)))
    text = write_report(run.parent, tmp_path / "r.html", Sources(radiological=True)).read_text()
    places = [text.index(f"<figcaption>{picture.title}") for picture in PICTURES]
    assert places == sorted(places)
    assert places[0] < text.index('id="viewer"') < places[3]
    assert 'id="montage"' not in text, "the demo's own montage stands for it"
    sources = re.findall(r'<img[^>]*src="([^"]*)"', text)
    assert len(sources) == len(set(sources)) == len(PICTURES)
    assert 'id="radiological" checked' in text


def test_nothing_in_it_is_fetched(page):
    assert "default-src 'none'" in page
    body = re.sub(r'<script type="(text/plain|application/json)".*?</script>', "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', body) == []
    assert "http" not in re.sub(r"http-equiv", "", body)


def test_what_is_missing_is_named_with_its_command(tmp_path):
    run = write_run(tmp_path, data=tmp_path / "nowhere")
    text = write_report(run, tmp_path / "out" / "page.html").read_text()
    for command in ("prod9 generate label", "prod9 audit --run", "prod9 evaluate images", "nowhere"):
        assert command in text
    assert 'id="niivue"' not in text


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("autoencoder", "fsq"), ("maisi_vae", "kl"), ("maisi_diffusion", "rectified_flow"), ("refiner", "refiner"),
     ("maskgit_controlnet", "controlnet_maskgit")],
)  # fmt: skip
def test_every_stage_has_a_report(tmp_path, stage, kind):
    run = write_run(tmp_path, stage=stage, kind=kind, data=tmp_path)
    text = write_report(run, tmp_path / "page.html").read_text()
    assert f"{stage} · {kind}" in text
    assert ("MAISI" if stage.startswith("maisi") else "MaskGiT") in text


def test_several_runs_in_one_folder_come_in_the_order_of_the_stages(tmp_path):
    write_run(tmp_path, name="a_later")
    write_run(tmp_path, stage="autoencoder", kind="fsq", name="first")
    assert [run.name for run in find_runs(tmp_path)] == ["first", "a_later"]


def test_damaged_records_count_as_missing_and_a_damaged_config_does_not(tmp_path):
    run = write_run(tmp_path)
    (run / "run.json").write_text("{")
    (run / "metrics.json").write_text("[]")
    (record,) = find_runs(run)
    assert record.steps == 0
    assert record.metrics == {}
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(DataError, match=r"config\.yaml: expected the config of a run"):
        find_runs(run)


def test_folders_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing there"):
        write_report(tmp_path / "none", tmp_path / "r.html")
    with pytest.raises(DataError, match="neither"):
        write_report(tmp_path, tmp_path / "r.html")
    run = write_run(tmp_path)
    with pytest.raises(DataError, match="gone: expected a folder"):
        write_report(run, tmp_path / "r.html", Sources(include=[tmp_path / "gone"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected volumes"):
        write_report(run, tmp_path / "r.html", Sources(generated=tmp_path / "empty"))
    assert not (tmp_path / "r.html").exists()


def test_json_lines_are_read_where_there_are_any(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "a": 1.0}\n{"step": 2, "a": null}\n{"step": 3, "a": 2}\n{"st'
    )
    assert read_curves(tmp_path) == {"a": [(1.0, 1.0), (3.0, 2.0)]}


def test_large_volumes_are_averaged_and_stay_in_place(tmp_path):
    data = np.zeros((200, 20, 20), dtype=np.float32)
    data[100:140, 8:12, 8:12] = 1
    write(tmp_path / "T1_0000.nii.gz", data, np.diag([1.0, 2.0, 2.0, 1.0]))
    (shown,) = load_generated(tmp_path)
    assert shown.image.shape == (100, 10, 10)
    centre = shown.affine @ [*np.argwhere(shown.image > 128).mean(0), 1]
    np.testing.assert_allclose(centre[:3], [119.5, 19.0, 19.0], atol=1e-6)


def test_generated_volumes_are_found_beside_the_run(tmp_path):
    run = write_run(tmp_path / "demo", data=tmp_path / "nowhere")
    write_generated(tmp_path / "demo" / "volumes")
    text = write_report(run.parent, tmp_path / "r.html").read_text()
    assert "T1_0000" in text
