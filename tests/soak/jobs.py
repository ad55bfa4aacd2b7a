"""What the soak kills: every stage, encoding, generating, simulating and the demo, at the smallest sizes.

A job runs in a forked process that has torch and Lightning loaded already, so that an episode takes seconds. What a
job leaves is reduced to one digest, without paths and times.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

STEPS = 8
_TRAINING = {"max_steps": STEPS, "validate_every_steps": 4, "lr_schedule": {"warmup_steps": 1}}
_SHARED = {
    "callbacks": {"num_samples": 1, "checkpoint": {"every_steps": 1, "save_top_k": 2}},
    "trainer": {"accelerator": "cpu", "loggers": ["csv"], "progress": False},
}
_DATA = {"split": {"train": 0.5, "val": 0.25, "test": 0.25}, "grid": [16, 16, 16], "batch_size": 2}
_FSQ = {"levels": [5, 5, 5], "num_channels": [8, 8, 16], "num_res_blocks": [1, 1, 1], "norm_num_groups": 4}
_KL = {"num_channels": [8, 8], "num_res_blocks": [1, 1], "norm_num_groups": 4, "latent_channels": 2}
_CRITIC = {"adversarial": {"start_step": 2, "discriminator": {"channels": 4, "num_layers_d": 1}}}
_FLOW = {
    "num_channels": [8, 8], "num_res_blocks": 1, "attention_levels": [False, True], "num_head_channels": [0, 4],
    "norm_num_groups": 4, "num_class_embeds": 5,
}  # fmt: skip
_LABELLED = {"label_map": {"T1": 1, "T1ce": 2, "T2": 3, "FLAIR": 4}}
_DECODER = {"embed_dim": 16, "num_blocks": 2, "num_heads": 2}

STAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "stage1": (
        "prod9-train-autoencoder",
        "autoencoder",
        {"model": _FSQ, "loss": _CRITIC, "training": {**_TRAINING, "ema": {"decay": 0.9}}},
    ),
    "stage2": (
        "prod9-train-transformer",
        "transformer",
        {
            "inputs": {"autoencoder": "stage1"},
            "model": {"kind": "label_conditional", **_DECODER},
            "sampler": {"steps": 3},
            "training": {**_TRAINING, "ema": {"decay": 0.9}},
        },
    ),
    "translator": (
        "prod9-train-transformer",
        "transformer",
        {
            "inputs": {"autoencoder": "stage1"},
            "model": {"kind": "decoder", **_DECODER},
            "sampler": {"steps": 3},
        },
    ),
    "refiner": (
        "prod9-train-transformer",
        "refiner",
        {
            "inputs": {"transformer": "translator"},
            "model": {"num_channels": [8, 8], "space_to_depth": 2, "detail_channels": 4},
        },
    ),
    "detail": (
        "prod9-train-transformer",
        "detail",
        {
            "inputs": {"autoencoder": "stage1"},
            "model": {"num_channels": [8, 8], "detail_channels": 4},
            "sampler": {"steps": 2},
        },
    ),
    "translation_detail": (
        "prod9-train-transformer",
        "translation_detail",
        {
            "inputs": {"transformer": "translator"},
            "model": {"kind": "translation_detail", "num_channels": [8, 8], "detail_channels": 4},
            "sampler": {"steps": 2},
        },
    ),
    "stage3": (
        "prod9-train-maskgit-controlnet",
        "maskgit_controlnet",
        {"inputs": {"transformer": "stage2"}, "sampler": {"steps": 3}},
    ),
    "maisi_vae": ("prod9-train-maisi-vae", "maisi_vae", {"model": _KL, "loss": _CRITIC}),
    "maisi_diffusion": (
        "prod9-train-maisi-diffusion",
        "maisi_diffusion",
        {"inputs": {"autoencoder": "maisi_vae"}, "model": _FLOW, "data": _LABELLED},
    ),
    "maisi_detail": (
        "prod9-train-maisi-diffusion",
        "maisi_detail",
        {
            "inputs": {"autoencoder": "maisi_vae"},
            "model": {"num_classes": 5, "num_channels": [8, 8], "detail_channels": 4},
            "sampler": {"steps": 2},
            "data": _LABELLED,
        },
    ),
    "maisi_controlnet": (
        "prod9-train-maisi-controlnet",
        "maisi_controlnet",
        {"inputs": {"diffusion": "maisi_diffusion"}, "data": _LABELLED},
    ),
}
"""Command, stage and sections of each run, in an order in which they can be trained."""


@dataclass(frozen=True)
class Job:
    """Something to kill. start: does it, or goes on with it, in ``folder``. digest: what it left there.

    minutes: how long it may take at most.
    """

    name: str
    start: Callable[[Path], int]
    digest: Callable[[Path], str]
    minutes: float = 3.0


def run_forked(start: Callable[[Path], int], folder: Path, log: Path) -> int:
    """Run ``start(folder)`` in a forked process with its output in ``log``; return the process's number at once."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = start(folder)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def command(program: str, *args: object) -> int:
    """Run a command as its ``main`` does and return its exit code."""
    from prod9.cli import shared
    from tests.harness import MODULES

    return shared.run(import_module(MODULES[program]).app, [str(arg) for arg in args])


def prepare(base: Path) -> None:
    """Write the cohort and the configs, and train every stage once, without being killed; skips what is done."""
    from tests.fixtures import write_brats_tree

    if not (base / "cohort").is_dir():
        write_brats_tree(base / "making", 8)
        (base / "making").rename(base / "cohort")
    for name in STAGES:
        write_config(base, name)
        log = base / f"{name}.log"
        pid = run_forked(lambda folder, name=name: train(name, base, folder / name), base, log)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            raise RuntimeError(f"{name} cannot be trained: {log.read_text()[-2000:]}")


def write_config(base: Path, name: str) -> Path:
    """Write the YAML file of a run whose earlier stages are below ``base``."""
    _, stage, sections = STAGES[name]
    values: dict[str, Any] = {
        "stage": stage, "output_dir": str(base / name), "training": _TRAINING, **_SHARED, **sections,
    }  # fmt: skip
    values["data"] = {"root": str(base / "cohort"), **_DATA, **sections.get("data", {})}
    if "inputs" in sections:
        values["inputs"] = {key: str(base / path) for key, path in sections["inputs"].items()}
    path = base / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(name: str, base: Path, output: Path) -> int:
    """Train, or go on with, the run ``name`` in ``output``."""
    return command(
        STAGES[name][0], "train", "--config", base / f"{name}.yaml", "--output-dir", output, "--resume"
    )


def jobs(base: Path) -> list[Job]:
    """Return everything that is killed, in turn."""
    found = [
        Job(f"train {name}", lambda folder, name=name: train(name, base, folder / "run"), digest_of_run)
        for name in STAGES
        if name != "translator"
    ]
    return [
        *found,
        Job("encode", lambda folder: _encode(base, folder), digest_of_store),
        Job("generate", lambda folder: _generate(base, folder), digest_of_volumes),
        Job("encode parts", lambda folder: _encode_parts(base, folder), digest_of_store),
        Job("generate parts", lambda folder: _generate_parts(base, folder), digest_of_files),
        Job("mask parts", lambda folder: _mask_parts(base, folder), digest_of_files),
        Job("simulate", _simulate, digest_of_volumes),
        Job("demo", _demo, digest_of_demo, minutes=10.0),
    ]


def _encode(base: Path, folder: Path) -> int:
    return command("prod9", "encode", "--config", base / "stage2.yaml", "--output-dir", folder / "run")


def _generate(base: Path, folder: Path) -> int:
    return command(
        "prod9", "generate", "label", "--model", base / "stage2", "-o", folder / "out", "-n", 6, "--batch-size", 1
    )  # fmt: skip


def _parts(folder: Path, *command_line: object) -> int:
    """Do the parts of a command one after the other, and merge them in ``folder``."""
    for number in (1, 2, 3):
        code = command("prod9", *command_line, "--part", f"{number}/3")
        if code:
            return code
    return command("prod9", "merge", folder)


def _encode_parts(base: Path, folder: Path) -> int:
    output = folder / "run"
    return _parts(output / "store", "encode", "--config", base / "stage2.yaml", "--output-dir", output)


def _generate_parts(base: Path, folder: Path) -> int:
    output = folder / "out"
    return _parts(output, "generate", "label", "--model", base / "stage2", "-o", output, "-n", 3)


def _mask_parts(base: Path, folder: Path) -> int:
    output = folder / "out"
    return _parts(output, "generate", "masks", "--vary", base / "cohort", "-o", output, "-n", 6)


def _simulate(folder: Path) -> int:
    return command(
        "prod9", "data", "simulate", folder / "out", "--num-samples", 6, "--spacing", 8, "--workers", 1
    )


def _demo(folder: Path) -> int:
    from contextlib import contextmanager
    from dataclasses import replace

    from prod9.demo.plan import make_plan
    from prod9.demo.steps import Reporter, run_demo

    @contextmanager
    def silent(_: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    plan = replace(make_plan(folder / "out", quick=True, from_scratch=True), spacing_mm=8.0, budget=0.02)
    run_demo(plan, report=Reporter(say=print, bar=silent), device="cpu")
    return 0


# -- what they leave --------------------------------------------------------------------------------


def digest_of_run(folder: Path) -> str:
    """Return a digest of weights, averages, optimizers and ranking of the run in ``folder``."""
    from prod9.models.checkpoint_file import content_digest, read_checkpoint

    run = folder / "run"
    content, _ = read_checkpoint(run / "checkpoints" / "last.ckpt")
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    state = {name: content[name] for name in kept if name in content}
    ranking = json.loads((run / "checkpoints" / "best.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    best = sorted(path.name for path in (run / "checkpoints").glob("best-*.ckpt"))
    return content_digest([content["prod9"]["step"], state, ranking, metrics, best])


def digest_of_store(folder: Path) -> str:
    """Return a digest of all items of the store in ``folder``, however they lie in shards."""
    from prod9.data.stores.latents import TokenStore
    from prod9.models.checkpoint_file import content_digest

    store = TokenStore.open(folder / "run" / "store")
    names = ("case_id", "modality", "flipped")
    items = sorted(
        ([str(store.describe(k)[n]) for n in names], content_digest([store[k]["indices"], store.latent(k)]))
        for k in range(len(store))
    )
    return content_digest(items)


def digest_of_volumes(folder: Path) -> str:
    """Return a digest of the voxels of all volumes in ``folder``, by name."""
    from prod9.volumes import read

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.nii.gz")):
        volume = read(path)
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(volume.data.tobytes() + volume.header.affine.tobytes())
    return digest.hexdigest()


def digest_of_files(folder: Path) -> str:
    """Return a digest of the names and bytes of all files in ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def digest_of_demo(folder: Path) -> str:
    """Return a digest of the demo's volumes and scores, less its times."""
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    return hashlib.sha256((digest_of_volumes(folder) + json.dumps(metrics["stages"])).encode()).hexdigest()


def strays(folder: Path) -> list[str]:
    """Return what should not be there once a job is done: temporary files, locks, hashes without their files."""
    found = []
    for path in folder.rglob("*"):
        orphan = path.name.endswith(".sha256") and not path.with_suffix("").exists()
        if path.name.startswith(".tmp-") or path.name == ".lock" or orphan:
            found.append(str(path.relative_to(folder)))
    return found


def damaged(folder: Path) -> list[str]:
    """Return the files under final names that cannot be read whole."""
    from prod9.errors import Prod9Error
    from prod9.models.checkpoint_file import read_checkpoint
    from prod9.volumes import read

    found = []
    for path in folder.rglob("*"):
        if path.name.startswith(".tmp-") or not path.is_file():
            continue
        try:
            if path.suffix in (".ckpt", ".pt"):
                read_checkpoint(path)
            elif path.name.endswith(".nii.gz"):
                read(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (Prod9Error, ValueError) as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def clear(folder: Path) -> Path:
    """Return ``folder``, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
