"""The app with the packaged models, drawing in two steps. Test modules are skipped where its extra is not installed."""

import time
from functools import partial

import numpy as np
import pytest

from prod9.volumes import write
from tests.harness import later_models, trained

OWN = {"x-prod9": "1"}
AFFINE = np.diag([3.75, 3.75, 3.75, 1.0])


@pytest.fixture(scope="session")
def models():
    from prod9.app.models import PACKAGED, Models

    return Models(names=tuple(PACKAGED), device="cpu", overrides=[("sampler.steps", 2)])


@pytest.fixture(scope="session")
def steered(tmp_path_factory):
    """A control network of the tests beside a packaged model, and a case of its cohort: name → file."""
    from prod9.app.models import Models

    base = tmp_path_factory.getbasetemp()
    control, cohort = later_models(base)[1], trained(base).cohort
    case = sorted(path for path in cohort.iterdir() if path.is_dir())[0]
    files = {name: case / f"{case.name}-{name}.nii.gz" for name in ("t1n", "seg")}
    return Models(names=("demo/label", str(control)), device="cpu", overrides=[("sampler.steps", 2)]), files


@pytest.fixture
def app(models, tmp_path):
    from prod9.app.server import App

    return App(models=models, folder=tmp_path / "app")


@pytest.fixture
def client(app):
    from starlette.testclient import TestClient

    return TestClient(app.server(), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def head():
    """A head of ellipsoids, float32 [40 48 40]."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 40)), indexing="ij"))
    radius = np.sqrt((places**2).sum(0))
    return np.where(radius < 0.85, 400 + 300 * np.cos(6 * radius), 0).astype(np.float32)


@pytest.fixture
def send(client, tmp_path):
    """Upload a volume under a name and return what the app says of it."""

    def upload(name, data, **options):
        path = tmp_path / name
        write(path, data, AFFINE, **options)
        return client.put(f"/api/uploads/{name}", content=path.read_bytes(), headers=OWN)

    return upload


@pytest.fixture
def finish(client):
    """Start a job and return it when it has ended."""
    return partial(finished, client)


def finished(client, **request):
    """Start a job and return it when it has ended."""
    started = client.post("/api/jobs", json=request, headers=OWN)
    assert started.status_code == 202, started.text
    until = time.monotonic() + 120
    while time.monotonic() < until:
        job = client.get("/api/jobs").json()["jobs"][-1]
        if job["state"] != "running":
            return job
        time.sleep(0.02)
    raise AssertionError("the job did not end")
