"""``prod9 export``: whole exports, bundles of MONAI, and repositories of the hub."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import prod9
from prod9 import volumes
from prod9.models.named import hub
from tests.harness import Workspace, run
from tests.models.test_named import COMMIT, stand_in


@pytest.fixture(scope="module")
def bundle(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "bundle"
    ran = run("prod9", "export", workspace.run2, "--bundle", folder)
    assert ran.code == 0, ran.err
    assert f"python -m monai.bundle run --config_file {folder.as_posix()}/configs/inference.json" in ran.err
    return folder


def test_a_translator_takes_its_autoencoder_and_its_refiner_along(tmp_path: Path) -> None:
    ran = run("prod9", "export", "demo/translate", tmp_path / "whole", "--half", "--json")
    assert ran.code == 0, ran.err
    assert {"model.safetensors", "autoencoder/model.safetensors", "refiner/model.safetensors"} <= set(
        ran.json["bytes"]
    )
    assert ran.json["next"].startswith(f"prod9 generate translate -m {tmp_path / 'whole'} -p ")
    assert ran.json["next"].endswith(" -t FLAIR -o made")
    moved = shutil.move(tmp_path / "whole", tmp_path / "moved")
    pipeline = prod9.load(moved, device="cpu").pipeline
    here = json.loads((Path(moved) / "refiner" / "manifest.json").read_text(encoding="utf-8"))
    assert pipeline.sha256["refiner"] == here["files"]["model.safetensors"]["sha256"]


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI warns of configs of strangers
def test_a_bundle_runs_our_pipeline(
    bundle: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fire")
    line = [
        "monai.bundle", "run", "--config_file", str(bundle / "configs" / "inference.json"),
        "--bundle_root", str(bundle), "--output_dir", str(tmp_path / "made"), "--label", "FLAIR", "--device", "cpu",
        "--seed", "3",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    runpy.run_module("monai.bundle", run_name="__main__")
    check_made(tmp_path / "made", workspace)


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI warns of configs of strangers
def test_a_bundle_runs_from_python_too(bundle: Path, workspace: Workspace, tmp_path: Path) -> None:
    from monai.bundle import run as run_bundle

    run_bundle(
        config_file=str(bundle / "configs" / "inference.json"), bundle_root=str(bundle),
        output_dir=str(tmp_path / "made"), label="FLAIR", device="cpu", seed=3,
    )  # fmt: skip
    check_made(tmp_path / "made", workspace)


def check_made(folder: Path, workspace: Workspace) -> None:
    (made,) = folder.glob("*.nii.gz")
    assert made.name == "FLAIR_0003.nii.gz"
    (expected,) = prod9.load(workspace.run2, device="cpu")("FLAIR", seed=3)
    np.testing.assert_array_equal(volumes.read(made).data, expected.data)


def test_a_bundle_says_what_it_is(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [16, 16, 16]
    assert metadata["required_packages_version"] == {"prod9": prod9.__version__}
    assert "no medical device" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")


def test_what_was_pushed_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Api:
        def repo_info(self, repo: str, **how: object) -> None:
            pass

        def create_repo(self, *, repo_id: str, private: bool, exist_ok: bool) -> None:
            made.append((repo_id, private, exist_ok))

        def upload_folder(self, *, folder_path: str, **how: object) -> SimpleNamespace:
            shutil.copytree(folder_path, tmp_path / "cache" / COMMIT)
            return SimpleNamespace(oid=COMMIT)

    library = stand_in(lambda repo, **how: str(tmp_path / "cache" / COMMIT))
    library.HfApi = Api
    monkeypatch.setattr(hub, "hub_library", lambda: library)
    hub.fetch.cache_clear()
    ran = run("prod9", "export", "demo/label", "--push", "org/brains", "--private", "--json")
    assert ran.code == 0, ran.err
    assert made == [("org/brains", True, True)]
    assert ran.json["pushed"] == f"hf:org/brains@{COMMIT}"
    assert ran.json["next"] == f"prod9 generate label -m hf:org/brains@{COMMIT} -l FLAIR -n 4 -o made"
    ran = run(
        "prod9", "generate", "label", "-m", f"hf:org/brains@{COMMIT}", "-o", tmp_path / "out", "--check"
    )
    assert ran.code == 0, ran.err
    hub.fetch.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got neither"),
        (["a", "--bundle", "b"], "got both"),
        (["--push", "brains"], "hf:ORGANISATION/MODEL"),
        (["a", "--private"], "expected --push with it"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("prod9", "export", "demo/label", *options)
    assert ran.code == 2
    assert message in ran.err
    assert not list(tmp_path.iterdir())


def test_an_autoencoder_is_no_bundle(tmp_path: Path) -> None:
    ran = run("prod9", "export", "demo/autoencoder", "--bundle", tmp_path / "b")
    assert ran.code == 2
    assert "makes volumes" in ran.err
    assert not (tmp_path / "b" / "configs").exists()
