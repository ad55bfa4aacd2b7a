"""The app in one process: what it offers, makes, refuses and forgets."""

import gzip

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs pip install 'prod9[app]'")
pytest.importorskip("httpx2", reason="needs pip install httpx2, which Starlette's test client uses")

from starlette.testclient import TestClient

from prod9.app.jobs import Runner
from prod9.app.server import App
from prod9.errors import ConfigError
from tests.app.conftest import OWN, finished


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.text
    assert "http" not in page.text.replace("http-equiv", "")
    for script in ("/app.js", "/niivue.js"):
        assert client.get(script).headers["content-type"].startswith("text/javascript")


def test_models_say_what_they_can_do(client):
    assert client.get("/api/models").json() == {"models": ["demo/label", "demo/translate"]}
    label = client.get("/api/model", params={"name": "demo/label"}).json()
    assert label["tasks"] == ["label", "inpaint"]
    assert label["labels"] == ["T1", "T1ce", "T2", "FLAIR"]
    assert "simulated brains" in label["note"]
    assert client.get("/api/model", params={"name": "demo/translate"}).json()["tasks"] == ["translate"]


def test_a_volume_is_made_from_a_label_and_can_be_downloaded(client, finish, tmp_path):
    job = finish(model="demo/label", task="label", label="FLAIR", num_samples=2, seed=5)
    assert (job["state"], job["share"], job["message"]) == ("done", 1.0, "")
    assert [result["name"] for result in job["results"]] == ["FLAIR_0000.nii.gz", "FLAIR_0001.nii.gz"]
    content = client.get(job["results"][1]["url"]).content
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert image.shape == (48, 56, 48)
    assert np.asarray(image.dataobj).std() > 0.01
    used = client.get(job["record"]).json()
    assert (used["seed"], used["label"], used["model"]) == (5, "FLAIR", "demo/label")
    assert set(used["sha256"]) >= {"transformer", "autoencoder"}
    again = finish(model="demo/label", task="label", label="FLAIR", num_samples=2, seed=5)
    assert client.get(again["results"][1]["url"]).content == content


def test_a_missing_modality_is_made_on_the_voxels_of_the_sources(client, send, finish, head):
    sent = send("p1_t1.nii.gz", head).json()
    assert (sent["modality"], sent["shape"], sent["spacing"]) == ("T1", [40, 48, 40], [3.75] * 3)
    other = send("p1_t2.nii.gz", 1000 - head * (head > 0)).json()
    job = finish(
        model="demo/translate", task="translate", label="FLAIR", sources={"T1": sent["id"], "T2": other["id"]}
    )
    assert job["state"] == "done", job["message"]
    made = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(job["results"][0]["url"]).content))
    np.testing.assert_allclose(made.affine, np.diag([3.75, 3.75, 3.75, 1.0]))
    assert np.asarray(made.dataobj)[0, 0, 0] == 0
    assert client.get(sent["url"]).status_code == 200


def test_a_region_is_drawn_again_and_nothing_else(client, send, finish, head):
    region = np.zeros(head.shape, dtype=np.uint8)
    region[16:22, 20:26, 18:24] = 1
    scan, mask = send("t1.nii.gz", head).json(), send("region.nii.gz", region, dtype=np.uint8).json()
    job = finish(model="demo/label", task="inpaint", label="T1", scan=scan["id"], mask=mask["id"])
    assert job["state"] == "done", job["message"]
    assert client.get(job["results"][0]["mask"]).status_code == 200
    made = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(job["results"][0]["url"]).content))
    voxels = np.asarray(made.dataobj)
    np.testing.assert_array_equal(voxels[region == 0], head[region == 0])
    assert not np.array_equal(voxels[region == 1], head[region == 1])


@pytest.mark.parametrize("scan", [True, False])
def test_lesions_are_placed_by_a_segmentation(steered, tmp_path, scan):
    models, files = steered
    server = App(models=models, folder=tmp_path).server()
    client = TestClient(server, base_url="http://127.0.0.1", raise_server_exceptions=False)
    sent = {
        name: client.put(f"/api/uploads/{path.name}", content=path.read_bytes(), headers=OWN).json()
        for name, path in files.items()
    }
    assert client.get("/api/model", params={"name": models.names[1]}).json()["tasks"] == ["control"]
    job = finished(
        client, model=models.names[1], task="control", label="T1", mask=sent["seg"]["id"],
        scan=sent["t1n"]["id"] if scan else None, num_samples=2,
    )  # fmt: skip
    assert job["state"] == "done", job["message"]
    assert [result["name"] for result in job["results"]] == ["T1_0000.nii.gz", "T1_0001.nii.gz"]
    # Without its scan, the middle of the file is taken for that of the head, and the user is told so.
    centred = [note for note in job["notes"] if "field of view" in note]
    assert bool(centred) != scan
    assert not any("data.label_scheme" in note for note in job["notes"]), "the page has no such option"
    assert len(client.get(job["record"]).json()["notes"]) == len(job["notes"])
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(job["results"][0]["mask"]).content))
    made = nib.Nifti1Image.from_bytes(gzip.decompress(client.get(job["results"][0]["url"]).content))
    assert mask.shape == made.shape == (16, 16, 16)
    np.testing.assert_array_equal(mask.affine, made.affine)
    assert np.asarray(mask.dataobj).any()
    missing = finished(client, model=models.names[1], task="control", label="T1")
    assert missing["message"].startswith("seg: expected a segmentation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "demo/other"}, "expected one of demo/label, demo/translate"),
        ({"label": "PET"}, "PET"),
        ({"task": "translate"}, "task: expected one of label, inpaint"),
        ({"task": "inpaint", "label": "T1"}, "scan: expected a NIfTI file, got none; choose one."),
    ],
)
def test_what_a_model_cannot_do_fails_with_one_message(finish, changes, message):
    job = finish(**{"model": "demo/label", "task": "label", "label": "T1", **changes})
    assert job["state"] == "failed"
    assert message in job["message"]
    assert job["results"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "request: "),
        (b'{"model": "demo/label", "task": "label", "label": "T1", "num_samples": 99}', "num_samples: "),
        (b'{"model": "demo/label", "task": "fly", "label": "T1"}', "task: "),
        (
            b'{"model": "demo/label", "task": "inpaint", "label": "T1", "scan": "gone"}',
            "scan: expected an uploaded",
        ),
    ],
)
def test_bad_requests_are_refused_before_a_job_starts(client, body, message):
    answer = client.post("/api/jobs", content=body, headers=OWN)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)
    assert client.get("/api/jobs").json() == {"jobs": []}


def test_files_that_are_no_volumes_are_refused_and_not_kept(client, app):
    answer = client.put("/api/uploads/notes.nii.gz", content=b"not a volume", headers=OWN)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("notes.nii.gz: expected")
    assert app.uploads == {}
    assert not any(path.is_file() for path in app.folder.rglob("*"))


def test_names_of_files_lead_nowhere_else(client, send, head, app):
    sent = client.put("/api/uploads/..%2F..%2Fevil%20name.nii", content=b"x", headers=OWN)
    assert sent.status_code in (400, 404)
    id_ = send("t1.nii.gz", head).json()["id"]
    assert client.get(f"/files/{id_}/..%2F..%2Fserver.py").status_code == 404
    assert client.get("/files/nobody/t1.nii.gz").status_code == 404


def test_other_sites_can_neither_ask_nor_start_anything(client):
    wanted = {"model": "demo/label", "task": "label", "label": "T1"}
    assert client.post("/api/jobs", json=wanted).status_code == 403
    assert client.put("/api/uploads/a.nii", content=b"").status_code == 403
    assert client.get("/api/jobs", headers={"host": "evil.example"}).status_code == 400


def test_one_job_at_a_time_and_it_can_be_cancelled(client):
    wanted = {"model": "demo/label", "task": "label", "label": "T1", "num_samples": 16}
    job = client.post("/api/jobs", json=wanted, headers=OWN).json()
    second = client.post("/api/jobs", json=wanted, headers=OWN)
    assert second.status_code == 400
    assert second.json()["error"].startswith("job: expected one at a time")
    assert client.post(f"/api/jobs/{job['id']}/cancel", headers=OWN).status_code == 200
    while (now := client.get("/api/jobs").json()["jobs"][-1])["state"] == "running":
        pass
    assert (now["state"], now["results"]) == ("cancelled", [])
    assert client.post("/api/jobs/unknown/cancel", headers=OWN).status_code == 404


def test_a_fault_is_told_as_one(client):
    def make(job, report):
        raise ZeroDivisionError("oops")

    runner = Runner()
    job = runner.start("x", make)
    while job.state == "running":
        pass
    assert (job.state, job.message) == (
        "failed", "ZeroDivisionError: oops; this is a fault of prod9, not of your input.",
    )  # fmt: skip
    job.state = "running"
    with pytest.raises(ConfigError, match="one at a time"):
        runner.start("y", make)


def test_a_failed_job_names_files_as_their_owner_does(finish, send, head):
    scan = send("mine.nii.gz", head).json()["id"]
    mask = send("small.nii.gz", np.ones((8, 8, 8), np.float32)).json()["id"]
    job = finish(model="demo/label", task="inpaint", label="FLAIR", scan=scan, mask=mask)
    assert job["message"].startswith("small.nii.gz: expected the voxel grid of mine.nii.gz")
    assert "tick the box" in job["message"]
    assert job["title"] == "FLAIR drawn again by demo/label, 1 volume"
