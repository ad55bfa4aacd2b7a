"""The app in a real browser: the form is filled, the last result is drawn, and nothing is asked of the network."""

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from tests.app.chromium import browser
from tests.app.conftest import OWN
from tests.evaluation.report.test_browser import CHROMIUM, SOFTWARE_WEBGL

pytest.importorskip("uvicorn", reason="needs pip install 'prod9[app]'")
httpx2 = pytest.importorskip("httpx2", reason="needs pip install httpx2")
from prod9.app.serving import server  # noqa: E402 (after the check that its extra is installed)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
    pytest.mark.slow,
]


@contextmanager
def served(models, folder):
    """Yield the address of an app that runs."""
    listening = socket.create_server(("127.0.0.1", 0))
    running = server(models, folder)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join(10)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def address(models, tmp_path):
    with served(models, tmp_path / "app") as found:
        yield found


@pytest.mark.skipif(os.name == "nt", reason="Chromium is driven over inherited files")
def test_a_segmentation_is_given_and_followed_by_clicks_alone(steered, tmp_path):
    models, files = steered
    with served(models, tmp_path / "app") as address, browser(tmp_path) as page:
        page.open(address)
        page.choose("#model", models.names[1])
        page.wait("!document.querySelector('#mask-row').hidden")
        assert "Segmentation to follow" in page.text()
        page.choose("#label", "T1ce")
        page.click("#go")  # too early: one sentence says what is missing
        page.wait("!document.querySelector('#error').hidden")
        assert "Choose the segmentation first." in page.text()
        page.give("#mask", files["seg"])
        page.give("#scan", files["t1n"])
        assert page.value("document.querySelector('#label').value") == "T1ce"
        page.click("#go")
        page.wait("document.body.dataset.shown === 'T1ce_0000.nii.gz'")
        assert page.value("document.body.dataset.drawn") == "true"
        assert not page.value("document.querySelector('#overlay-row').hidden")
        assert page.value("document.querySelector('#error').hidden"), page.text()
        assert "T1ce steered by" in page.text()
        page.screenshot(tmp_path / "control.png")
        assert page.said == []


def test_a_page_that_is_loaded_shows_the_last_result(address, tmp_path):
    wanted = {"model": "demo/label", "task": "label", "label": "FLAIR"}
    with httpx2.Client(base_url=address, headers=OWN) as client:
        client.post("/api/jobs", json=wanted).raise_for_status()
        until = time.monotonic() + 120
        while (job := client.get("/api/jobs").json()["jobs"][0])[
            "state"
        ] == "running" and time.monotonic() < until:
            time.sleep(0.05)
    assert job["state"] == "done", job["message"]
    ran = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *SOFTWARE_WEBGL,
            f"--user-data-dir={tmp_path / 'user'}", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--window-size=1360,1000",
            "--virtual-time-budget=20000", "--dump-dom", address,
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert re.findall(r".*CONSOLE.*", ran.stderr) == []
    state = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", ran.stdout)[0]))
    assert (state["viewer"], state["drawn"], state["shown"]) == ("niivue", "true", "FLAIR_0000.nii.gz")
    assert state["ready"] == "true"
    assert "download FLAIR_0000.nii.gz" in ran.stdout
    assert '<option value="demo/translate">' in ran.stdout
    assert "simulated brains" in ran.stdout
    assert 'role="alert" hidden' in ran.stdout
