"""Models by name: paths first, then packaged ones, then repositories of the hub."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from prod9.errors import CheckpointError, ConfigError, MissingDependencyError
from prod9.models.checkpoint_manager import CheckpointManager
from prod9.models.checkpoint_places import find_recorded
from prod9.models.named import hub
from prod9.models.named.find import located, provenance, require_model
from prod9.models.named.packaged import PACKAGED, named_in, packaged_named, packaged_with
from tests.training.tiny import write_autoencoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def forget() -> None:
    hub.fetch.cache_clear()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_autoencoder(tmp_path / "a.ckpt")
    return CheckpointManager.export(tmp_path / "a.ckpt", tmp_path / "export")


def test_every_packaged_model_opens_by_each_of_its_names() -> None:
    for model in PACKAGED.values():
        for name in model.names:
            assert located(name) == model.folder
            assert packaged_named(name) is model
        opened = CheckpointManager.open(model.names[0])
        assert packaged_with(opened.sha256) is model
        assert model.num_bytes > 100_000
        assert "simulated patients, 3.75 mm" in model.trained_on


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("demo/label").name == "stage2_label"
    (tmp_path / "demo" / "label").mkdir(parents=True)
    assert located("demo/label") == Path("demo/label")
    assert provenance("demo/label") is None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("demo/translat", "did you mean demo/translate?"),
        ("demo/zzz", "packaged models are demo/translate"),
        ("runs/nothing", "train that stage first"),
    ],
)
def test_what_is_nowhere_is_refused_with_the_remedy(name: str, remedy: str) -> None:
    with pytest.raises(CheckpointError, match="got nothing there") as refused:
        require_model(name)
    assert remedy in str(refused.value)
    with pytest.raises(CheckpointError) as again:
        CheckpointManager.open(name)
    assert str(again.value) == str(refused.value)


def test_packaged_models_say_what_they_saw() -> None:
    line = provenance("demo/translate")
    assert line is not None
    assert "simulated brains of 3.75 mm" in line
    assert "prod9 finetune --model demo/translate" in line


def test_a_run_on_packaged_weights_finds_them_on_another_computer(tmp_path: Path) -> None:
    shutil.copytree(PACKAGED["stage2"].folder, tmp_path / "alone")
    opened = CheckpointManager.open(tmp_path / "alone")
    assert find_recorded(opened.path, opened.header, "autoencoder") == PACKAGED["stage1"].folder
    assert CheckpointManager.load_upstream(opened).path == PACKAGED["stage1"].folder


@pytest.mark.parametrize("name", ["hf:", "hf:model", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@-x"])
def test_malformed_names_of_repositories_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="hf:ORGANISATION/MODEL"):
        hub.parse(name)


def stand_in(snapshot_download: Callable[..., str]) -> SimpleNamespace:
    """Return what is used of huggingface_hub, with errors of the same names and bases."""
    missing = type("LocalEntryNotFoundError", (FileNotFoundError, ValueError), {})
    http = type("HfHubHTTPError", (OSError,), {})
    repository = type("RepositoryNotFoundError", (http,), {})
    errors = SimpleNamespace(
        LocalEntryNotFoundError=missing,
        RepositoryNotFoundError=repository,
        GatedRepoError=type("GatedRepoError", (repository,), {}),
        RevisionNotFoundError=type("RevisionNotFoundError", (http,), {}),
    )
    errors.HfHubHTTPError = http

    def download(repo: str, **how: object) -> str:
        if how.get("local_files_only"):
            raise missing("not in the cache")
        return snapshot_download(repo, **how)

    api = SimpleNamespace(repo_info=lambda repo, **how: None)
    return SimpleNamespace(errors=errors, snapshot_download=download, HfApi=lambda: api)


def use(monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace) -> None:
    monkeypatch.setattr(hub, "hub_library", lambda: library)


def test_a_repository_is_fetched_once_and_without_what_could_hold_code(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(repo: str, **how: object) -> str:
        asked.append((repo, how.get("revision"), how.get("allow_patterns")))
        folder = tmp_path / "cache" / COMMIT
        shutil.copytree(export, folder, dirs_exist_ok=True)
        return str(folder)

    use(monkeypatch, stand_in(snapshot_download))
    assert CheckpointManager.open("hf:org/model").path.name == COMMIT
    assert located("hf:org/model").name == COMMIT
    assert asked == [("org/model", None, ["*.safetensors", "*.json", "*.md"])]
    line = provenance("hf:org/model")
    assert line is not None
    assert f"hf:org/model@{COMMIT}" in line
    assert provenance(f"hf:org/model@{COMMIT}") is None


def test_content_that_differs_from_its_manifest_is_refused(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = export / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    use(monkeypatch, stand_in(lambda repo, **how: str(export)))
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        CheckpointManager.open("hf:org/model")


def test_a_repository_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("a poem", encoding="utf-8")
    use(monkeypatch, stand_in(lambda repo, **how: str(tmp_path)))
    with pytest.raises(CheckpointError, match=r"expected an export of prod9 .*, got README.md"):
        located("hf:org/model")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("LocalEntryNotFoundError", "connect once"),
        ("RepositoryNotFoundError", "check the name"),
        ("GatedRepoError", "terms"),
        ("RevisionNotFoundError", "what follows @"),
    ],
)
def test_each_refusal_of_the_hub_becomes_one_clear_message(
    kind: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(repo: str, **how: object) -> str:
        raise getattr(library.errors, kind)("a long story")

    library = stand_in(refuse)
    use(monkeypatch, library)
    with pytest.raises(CheckpointError, match="hf:org/model") as refused:
        located("hf:org/model@v1")
    assert text in str(refused.value)
    assert "a long story" not in str(refused.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(hub, "import_module", nothing)
    with pytest.raises(MissingDependencyError, match=r"prod9\[hub\]"):
        located("hf:org/model")


def test_the_librarys_own_cache_answers_without_a_network(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub" / "models--org--model"
    shutil.copytree(export, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", True)
    assert CheckpointManager.open(f"hf:org/model@{COMMIT}").path == cache / "snapshots" / COMMIT
    assert located("hf:org/model") == cache / "snapshots" / COMMIT
    with pytest.raises(CheckpointError, match="connect once"):
        located("hf:org/other")


def test_the_manifests_of_packaged_models_are_whole() -> None:
    for model in PACKAGED.values():
        listed = json.loads((model.folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        assert {"model.safetensors", "config.json"} <= set(listed)


def test_messages_name_packaged_models_as_their_users_do():
    folder = PACKAGED["stage2_label"].folder
    assert named_in(f"{folder}: expected a decoder") == "demo/label: expected a decoder"
    assert named_in(f"{folder}/config.json: damaged") == f"{folder}/config.json: damaged"
    assert named_in(f"{PACKAGED['stage2'].folder}, {PACKAGED['stage2_refiner'].folder}") == (
        "demo/translate, demo/stage2_refiner"
    )


def test_a_relative_path_that_is_not_there_says_from_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"check the path, which is seen from {re.escape(str(tmp_path))}"
    ):
        require_model("outputs/run")
    with pytest.raises(CheckpointError, match="check the path, or train"):
        require_model(tmp_path / "run")
