"""The report in a real browser: it draws, says nothing on the console, and asks for nothing from the network."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from prod9.evaluation.report.page import write_report
from prod9.volumes import write
from tests.evaluation.audit_cohort import AFFINE, head
from tests.evaluation.report.folders import write_run, write_whole

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-webgl", "--disable-3d-apis")
OPENS_WITHIN_MS = 3000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"),
    pytest.mark.slow,
]


def browse(page, tmp_path, *options):
    """Return what the page wrote into its body, and all messages of its console."""
    ran = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'user'}", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1360,1200", *options, "--virtual-time-budget=20000", "--dump-dom", page.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    body = re.search(r"<body[^>]*>", ran.stdout)
    state = dict(re.findall(r'data-(\w+)="([^"]*)"', body[0]))
    return state, re.findall(r".*CONSOLE.*", ran.stderr)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_whole(tmp_path_factory.mktemp("browser"))
    return write_report(run, run / "report.html")


def test_the_viewer_draws_without_a_word_on_the_console_or_a_request(page, tmp_path):
    state, console = browse(page, tmp_path, *SOFTWARE_WEBGL)
    assert console == []
    assert (state["viewer"], state["drawn"], state["requests"]) == ("niivue", "true", "0")
    assert int(state["ready"]) < OPENS_WITHIN_MS


def test_without_webgl_a_plain_viewer_takes_over(page, tmp_path):
    state, console = browse(page, tmp_path, *NO_WEBGL)
    assert console == []
    assert (state["viewer"], state["drawn"], state["requests"]) == ("canvas", "true", "0")


def test_black_volumes_are_not_taken_for_a_picture(tmp_path):
    run = write_run(tmp_path, data=tmp_path / "nowhere")
    (run / "volumes").mkdir()
    data = np.zeros_like(head(0))
    data[0, 0, 0] = data[-1, -1, -1] = 1e-6  # no slice in the middle shows either
    write(run / "volumes" / "T1_0000.nii.gz", data, AFFINE)
    state, _ = browse(write_report(run, run / "report.html"), tmp_path, *NO_WEBGL)
    assert (state["viewer"], state["drawn"]) == ("canvas", "false")
