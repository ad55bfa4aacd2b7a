"""The readers that the soak feeds: volumes, lists, configs, checkpoints, exports, stores and records."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.soak.fuzz import Reader, anything, as_json, mutate, vary

_TASK = ("imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
_LISTS = {"cases.csv", "list.json", "dataset.json"}


def readers(base: Path) -> list[Reader]:
    """Return every reader, with the share of the inputs that it gets; ``base``: the soak's trained stages."""
    _base.append(base)
    return [
        Reader("NIfTI", _nifti, lambda folder: _volume(folder / "a.nii"), 3.0),
        Reader("NIfTI gzip", _nifti_gz, lambda folder: _volume(folder / "a.nii.gz"), 2.0),
        Reader("MedMNIST npz", _npz, _read_npz, 1.5),
        Reader("config YAML", _config, _read_config, 2.0),
        Reader("--set", _override, _read_override, 1.5),
        Reader("CSV list", _text_of("cases.csv", _CSV), _cases, 1.0),
        Reader("JSON list", _json_of("list.json", _JSON_LIST), _cases, 1.0),
        Reader("dataset.json", _json_of("dataset.json", _DATASET), _cases, 1.0),
        Reader("split.json", _json_of("split.json", _SPLIT), _split, 1.0),
        Reader("checkpoint bytes", _checkpoint, lambda folder: _network(folder / "a.ckpt"), 1.0),
        Reader("checkpoint header", _header, lambda folder: _network(folder / "a.ckpt"), 1.5),
        Reader("export", _export, lambda folder: _network(folder / "export"), 1.0),
        Reader("store", _store, _open_store, 1.0),
        Reader("lock", _text_of(".lock", b'{"pid": 1, "host": "a", "started": "5"}'), _claim, 0.5),
        Reader("records of a run", _records, _report, 1.0),
        Reader("evaluation files", _evaluation, _report, 1.0),
    ]


_base: list[Path] = []


# -- volumes ------------------------------------------------------------------------------------------


@cache
def _plain_volume() -> bytes:
    from prod9.volumes import encode

    data = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
    return encode(data, np.diag([4.0, 4.0, 4.0, 1.0]))


def _nifti(folder: Path, rng: random.Random) -> None:
    data = _plain_volume()
    # Most of the file is voxels, and most faults are in the header.
    changed = mutate(data[:352], rng) + data[352:] if rng.random() < 0.8 else mutate(data, rng)
    (folder / "a.nii").write_bytes(changed)


def _nifti_gz(folder: Path, rng: random.Random) -> None:
    import gzip

    if rng.random() < 0.5:
        packed = gzip.compress(mutate(_plain_volume(), rng), mtime=0)
    else:
        packed = mutate(gzip.compress(_plain_volume(), mtime=0), rng)
    (folder / "a.nii.gz").write_bytes(packed)


def _volume(path: Path) -> object:
    from prod9.volumes import looks_whole, read, read_header

    header = read_header(path)
    _ = header.orientation, header.spacing, looks_whole(header)
    return read(path)


@cache
def _plain_npz() -> dict[str, bytes]:
    arrays = {}
    for part in ("train", "val", "test"):
        for name, array in (
            ("images", np.zeros((2, 28, 28, 28), np.uint8)),
            ("labels", np.zeros((2, 1), np.uint8)),
        ):
            stream = io.BytesIO()
            np.save(stream, array)
            arrays[f"{part}_{name}.npy"] = stream.getvalue()
    return arrays


def _npz(folder: Path, rng: random.Random) -> None:
    path = folder / "organmnist3d.npz"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _plain_npz().items():
            odd = rng.random() < 0.3
            changed = mutate(content[:128], rng) + content[128:] if odd else content
            archive.writestr(name, changed)
    data = target.getvalue()
    path.write_bytes(mutate(data, rng) if rng.random() < 0.5 else data)


def _read_npz(folder: Path) -> object:
    from prod9.data.layouts.medmnist import open_medmnist3d

    file = open_medmnist3d(folder, "organmnist3d", 28)
    return [file.read(part, 11) for part in ("train", "val", "test")]


# -- configs ------------------------------------------------------------------------------------------


@cache
def _values() -> dict[str, Any]:
    return yaml.safe_load((_base[0] / "stage1.yaml").read_text())


def _config(folder: Path, rng: random.Random) -> None:
    text = yaml.safe_dump(_values()).encode()
    if rng.random() < 0.5:
        content = mutate(text, rng)
    else:
        content = yaml.safe_dump(vary(_values(), rng, 0.05), allow_unicode=True).encode(errors="replace")
    (folder / "a.yaml").write_bytes(content)


def _read_config(folder: Path) -> object:
    from prod9.config.load import load_config

    return load_config(folder / "a.yaml", environ={})


_KEYS = [
    "stage",
    "data.grid",
    "data.label_map.T1",
    "model",
    "training.max_steps",
    "model.levels",
    "output_dir",
    "x",
]
_SET = [
    "{}",
    "[",
    "[[[[",
    "1e999",
    "-1",
    "${X}",
    "&a [*a]",
    "!!python/name:os.system",
    "2" * 5000,
    "null",
    "T1: 2",
]


def _override(folder: Path, rng: random.Random) -> None:
    text = f"{rng.choice(_KEYS)}={rng.choice(_SET)}"
    (folder / "set.txt").write_bytes(mutate(text.encode(), rng) if rng.random() < 0.6 else text.encode())


def _read_override(folder: Path) -> object:
    from prod9.config.load import load_config

    text = (folder / "set.txt").read_bytes().decode(errors="replace")
    return load_config(_base[0] / "stage1.yaml", overrides=[text], environ={})


# -- lists of cases -----------------------------------------------------------------------------------

_KINDS = ("t1n", "t1c", "t2w", "t2f")
_COLUMNS = ("t1", "t1ce", "t2", "flair")
_CSV = ("case,patient," + ",".join(_COLUMNS) + ",split\n").encode() + b"".join(
    f"c{k},p{k},{','.join(f'scan-{kind}.nii' for kind in _KINDS)},train\n".encode() for k in range(3)
)
_JSON_LIST = {
    "training": [{"image": [f"scan-{kind}.nii" for kind in _KINDS], "case": f"c{k}"} for k in range(3)],
    "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
}
_DATASET = {
    "name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "numTraining": 1,
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
}  # fmt: skip
_SPLIT = {"format": 1, "train": ["p0"], "val": ["p1"], "test": [], "settings": {"seed": 0, "train": 0.5}}


def _text_of(name: str, text: bytes) -> Callable[[Path, random.Random], None]:
    def write(folder: Path, rng: random.Random) -> None:
        (folder / name).write_bytes(mutate(text, rng))

    return write


def _json_of(name: str, value: Any) -> Callable[[Path, random.Random], None]:
    def write(folder: Path, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.6:
            content = as_json(vary(value, rng))
        elif kind < 0.97:
            content = mutate(as_json(value), rng)
        else:
            content = b"[" * 100_000
        (folder / name).write_bytes(content)

    return write


def _cases(folder: Path) -> object:
    from prod9.data.layouts.find import find_cases

    (name,) = {path.name for path in folder.iterdir()} & _LISTS
    for scan in (*(f"scan-{kind}.nii" for kind in _KINDS), *_TASK):
        path = folder / scan
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_plain_volume())
    return find_cases(folder / name if name != "dataset.json" else folder)


def _split(folder: Path) -> object:
    from prod9.data.cases import Case
    from prod9.data.splits import resolve_split

    cases = [Case(f"c{k}", f"p{k}", {"T1": folder / "a"}, None, "datalist", "auto") for k in range(2)]
    return resolve_split(
        cases, folder / "split.json", settings={"train": 0.5, "val": 0.5, "test": 0.0, "seed": 0}
    )


# -- checkpoints, exports, stores ---------------------------------------------------------------------


@cache
def _plain_checkpoint() -> bytes:
    from prod9.models.checkpoint_manager import CheckpointManager

    return CheckpointManager.resolve(_base[0] / "stage1").read_bytes()


def _checkpoint(folder: Path, rng: random.Random) -> None:
    (folder / "a.ckpt").write_bytes(mutate(_plain_checkpoint(), rng))


@cache
def _plain_content() -> dict[str, Any]:
    from prod9.models.checkpoint_file import read_checkpoint
    from prod9.models.checkpoint_manager import CheckpointManager

    content, _ = read_checkpoint(CheckpointManager.resolve(_base[0] / "stage1"))
    return {name: content[name] for name in ("prod9", "state_dict")}


def _header(folder: Path, rng: random.Random) -> None:
    import torch

    content = dict(_plain_content())
    header = {k: v for k, v in content["prod9"].items() if k != "digest"}
    # A header has hundreds of values: often one is odd, sometimes many.
    content["prod9"] = vary(header, rng, rng.choice([0.002, 0.01, 0.05]))
    if rng.random() < 0.2:
        state = dict(content["state_dict"])
        state[rng.choice(sorted(state))] = rng.choice(
            [5, None, "x", torch.ones(1).expand(10**5, 10**5), torch.ones(3)]
        )
        content["state_dict"] = state
    torch.save(content, folder / "a.ckpt")


def _network(path: Path) -> object:
    from prod9.config.load import config_from_dict
    from prod9.models.checkpoint_manager import CheckpointManager

    loaded = CheckpointManager.from_pretrained(path)
    return config_from_dict(loaded.header["config"], source=str(path))


@cache
def _plain_export() -> dict[str, bytes]:
    from prod9.models.checkpoint_manager import CheckpointManager

    folder = _base[0] / "export-of-stage1"
    if not folder.is_dir():
        CheckpointManager.export(_base[0] / "stage1", folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _export(folder: Path, rng: random.Random) -> None:
    from prod9.files import sha256

    export = folder / "export"
    export.mkdir(exist_ok=True)
    files = dict(_plain_export())
    name = rng.choice(["config.json", "model.safetensors", "manifest.json"])
    if name == "config.json" and rng.random() < 0.7:
        files[name] = as_json(vary(json.loads(files[name]), rng, 0.05))
    else:
        files[name] = mutate(files[name], rng)
    for file, content in files.items():
        (export / file).write_bytes(content)
    if name != "manifest.json" and rng.random() < 0.8:  # who forges a file forges its hash too
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name]["sha256"] = sha256(export / name)
        (export / "manifest.json").write_bytes(as_json(manifest))


@cache
def _plain_store() -> dict[str, bytes]:
    folder = _base[0] / "stage2" / "store"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _store(folder: Path, rng: random.Random) -> None:
    files = dict(_plain_store())
    name = "manifest.json" if rng.random() < 0.8 else rng.choice(sorted(files))
    if name == "manifest.json" and rng.random() < 0.7:
        files[name] = as_json(vary(json.loads(files[name]), rng, 0.02))
    else:
        files[name] = mutate(files[name], rng)
    (folder / "store").mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / "store" / file).write_bytes(content)


def _open_store(folder: Path) -> object:
    from prod9.data.stores.latents import TokenStore

    store = TokenStore.open(folder / "store")
    return [store[k] for k in range(len(store))]


def _claim(folder: Path) -> None:
    from prod9.system.folders import claimed

    with claimed(folder):
        pass


# -- records and evaluations --------------------------------------------------------------------------


def _run_folder(folder: Path) -> Path:
    run = folder / "run"
    (run / "logs" / "csv" / "from-step-000000").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(_values()))
    return run


def _records(folder: Path, rng: random.Random) -> None:
    run = _run_folder(folder)
    records: dict[str, Any] = {
        "metrics.json": {
            "step": 4,
            "metrics": {"val/loss": 3.5},
            "best": [{"file": "b", "step": 4, "value": 3.5}],
        },
        "run.json": {
            "runs": [{"outcome": "finished", "to_step": 4, "seconds": 9.5, "device": "cpu", "versions": {}}]
        },
        "split.json": _SPLIT,
        "checkpoints/best.json": [{"file": "best-step=000004.ckpt", "step": 4, "value": 1.0}],
    }
    for name, value in records.items():
        odd = rng.random() < 0.5
        content = as_json(vary(value, rng, 0.2)) if odd else as_json(value)
        (run / name).write_bytes(mutate(content, rng) if rng.random() < 0.2 else content)
    rows = b"step,train/loss,val/loss\n1,5.0,\n2,4.0,3.0\n"
    (run / "logs" / "csv" / "from-step-000000" / "metrics.csv").write_bytes(mutate(rows, rng))
    (run / "logs" / "metrics.jsonl").write_bytes(
        mutate(b'{"step": 1, "a": 2.0}\n{"step": 2, "a": 3.0}\n', rng)
    )


def _evaluation(folder: Path, rng: random.Random) -> None:
    run = _run_folder(folder)
    audit = {
        "passed": True, "suspects": [], "counts": {"generated": 4}, "threshold": 0.5, "measure": "voxels",
        "pictures": [], "distances": {"generated": [0.5, 0.4]}, "settings": {"seed": 0},
    }  # fmt: skip
    scores = {"fid": {"value": 3.0, "floor": 2.0, "n": 8, "d": 4}}
    evaluation = {
        "kind": "images", "scores": scores, "settings": {}, "skipped": [], "extractor": "autoencoder",
        "sha256": "0" * 64, "labels": {"T1": {"fid": 1.0}},
    }  # fmt: skip
    for name, value in (("evaluation.json", evaluation), ("audit.json", audit)):
        (run / name).write_bytes(
            as_json(vary(value, rng, 0.2)) if rng.random() < 0.8 else as_json(anything(rng))
        )


def _report(folder: Path) -> object:
    from prod9.evaluation.report.gather import find_runs
    from prod9.evaluation.report.page import Sources, write_report

    find_runs(folder / "run")
    return write_report(folder / "run", folder / "report.html", Sources(None, ()))
