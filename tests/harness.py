"""Runs commands inside the test process, and trains the tiny models that several tests share, once."""

import io
import json
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from prod9.cli import shared

MODULES = {
    "prod9": "prod9.cli.app",
    "prod9-generate": "prod9.cli.generate.group",
    "prod9-train-autoencoder": "prod9.cli.autoencoder",
    "prod9-train-transformer": "prod9.cli.transformer",
    "prod9-train-maisi-vae": "prod9.cli.maisi_vae",
    "prod9-train-maisi-diffusion": "prod9.cli.maisi_diffusion",
    "prod9-train-maisi-controlnet": "prod9.cli.maisi_controlnet",
    "prod9-train-maskgit-controlnet": "prod9.cli.maskgit_controlnet",
}

STAGE1 = """
stage: autoencoder
output_dir: {folder}/stage1
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
model:
  levels: [5, 5, 5]
  num_channels: [8, 8, 16]
  num_res_blocks: [1, 1, 1]
  norm_num_groups: 4
loss:
  adversarial: {{start_step: 2, discriminator: {{channels: 4, num_layers_d: 1}}}}
training: {{max_steps: 4, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""

STAGE2 = """
stage: transformer
output_dir: {folder}/stage2
inputs: {{autoencoder: {folder}/stage1}}
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
model: {{kind: label_conditional, embed_dim: 16, num_blocks: 2, num_heads: 2}}
sampler: {{steps: 3, order: halton}}
training: {{max_steps: 4, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}, ema: {{decay: 0.9}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""

TRANSLATOR = """
stage: transformer
output_dir: {folder}/in_context
inputs: {{autoencoder: {folder}/stage1}}
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
model: {{kind: single_stream, embed_dim: 16, num_blocks: 2, num_heads: 2, patch_size: 2}}
context: {{max_examples: 1}}
sampler: {{steps: 3, order: random}}
training: {{max_steps: 2, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 0}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""

CONTROL = """
stage: maskgit_controlnet
output_dir: {folder}/control
inputs: {{transformer: {folder}/stage2}}
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  batch_size: 2
  store_dir: {folder}/stage2/store
model: {{channels: [4, 4]}}
sampler: {{steps: 3, order: halton}}
validation: {{num_volumes: 2}}
training: {{max_steps: 2, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 0}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""

MAISI_DATA = """
data:
  root: {folder}/cohort
  split: {{train: 0.5, val: 0.25, test: 0.25}}
  grid: [16, 16, 16]
  label_map: {{T1: 1, T1ce: 2, T2: 3, FLAIR: 4}}
  batch_size: 2
training: {{max_steps: 2, validate_every_steps: 2, lr_schedule: {{warmup_steps: 1}}}}
callbacks: {{num_samples: 1}}
trainer: {{accelerator: cpu, loggers: [csv], progress: false}}
"""
VAE = """
stage: maisi_vae
output_dir: {folder}/vae
model: {{latent_channels: 2, num_channels: [8, 8], num_res_blocks: [1, 1], norm_num_groups: 4, space_to_depth: 2}}
loss: {{adversarial: {{weight: 0.0}}}}
"""
FLOW = """
stage: maisi_diffusion
output_dir: {folder}/flow
inputs: {{autoencoder: {folder}/vae}}
model:
  num_channels: [8, 8]
  attention_levels: [false, true]
  num_head_channels: [0, 4]
  num_res_blocks: 1
  norm_num_groups: 4
  num_class_embeds: 5
sampler: {{steps: 2}}
"""


_LABEL_MAPS = {
    "  grid: [16, 16, 16]": "  modalities: [seg]\n  grid: [16, 16, 16]",
    "levels:": "label_maps: true\n  levels:",
    "loss:\n  adversarial: {{start_step: 2, discriminator: {{channels: 4, num_layers_d: 1}}}}": (
        "loss: {{reconstruction: labels, adversarial: {{weight: 0.0}}}}"
    ),
    "num_heads: 2}}": "num_heads: 2, covariates: [4, 2]}}\n"
    "covariates: {{numbers: {{diameter_mm: [0, 120], right: [0, 1], front: [0, 1], up: [0, 1]}}}}",
}
"""What turns a config of scans into one of label maps."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Workspace:
    """Six patients of 16×18×14 voxels at 4 mm, two configs, and what was trained with them."""

    folder: Path
    stage1: Path
    stage2: Path
    train1: Ran
    train2: Ran

    @property
    def run1(self) -> Path:
        return self.folder / "stage1"

    @property
    def run2(self) -> Path:
        return self.folder / "stage2"

    @property
    def cohort(self) -> Path:
        return self.folder / "cohort"


def run(command: str, *args: object) -> Ran:
    """Run an installed command as its ``main`` does, without a new process."""
    app = import_module(MODULES[command]).app
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = shared.run(app, [str(arg) for arg in args])
    return Ran(code, out.getvalue(), err.getvalue())


def write_configs(folder: Path) -> tuple[Path, Path]:
    """Write the cohort and both configs; nothing is trained."""
    from tests.fixtures import write_brats_tree  # the start-up test counts what this module imports

    write_brats_tree(folder / "cohort", 6)
    paths = folder / "stage1.yaml", folder / "stage2.yaml"
    for path, text in zip(paths, (STAGE1, STAGE2), strict=True):
        path.write_text(text.format(folder=folder), encoding="utf-8")
    return paths


@cache
def trained(base: Path) -> Workspace:
    """Train both stages for a few steps, once a session; ``base`` is its temporary folder."""
    folder = base / "trained"
    stage1, stage2 = write_configs(folder)
    train1 = run("prod9-train-autoencoder", "train", "--config", stage1, "--json")
    assert train1.code == 0, train1.err
    train2 = run("prod9-train-transformer", "train", "--config", stage2, "--json")
    assert train2.code == 0, train2.err
    return Workspace(folder, stage1, stage2, train1, train2)


@cache
def later_models(base: Path) -> tuple[Path, Path]:
    """Train an in-context model and a control network of the label model, once a session; return their runs."""
    folder = trained(base).folder
    runs = []
    for command, text in (
        ("prod9-train-transformer", TRANSLATOR),
        ("prod9-train-maskgit-controlnet", CONTROL),
    ):
        config = folder / f"{command}.yaml"
        config.write_text(text.format(folder=folder), encoding="utf-8")
        ran = run(command, "train", "--config", config, "--json")
        assert ran.code == 0, ran.err
        runs.append(Path(ran.json["checkpoint"]).parents[1])
    return runs[0], runs[1]


@cache
def flow_models(base: Path) -> Path:
    """Train both stages of MAISI for two steps, once a session; return the folder of ``cohort``, ``vae`` and ``flow``.

    Tests that write into it copy it first.
    """
    from tests.fixtures import write_brats_tree

    folder = base / "maisi_trained"
    write_brats_tree(folder / "cohort", 4)
    for command, name, text in (
        ("prod9-train-maisi-vae", "vae", VAE),
        ("prod9-train-maisi-diffusion", "flow", FLOW),
    ):
        config = folder / f"{name}.yaml"
        config.write_text((text + MAISI_DATA).format(folder=folder), encoding="utf-8")
        ran = run(command, "train", "--config", config, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["step"] == 2
    return folder


def label_maps(text: str, folder: Path, cohort: Path) -> str:
    """Return the config ``text`` of scans as one of label maps, for runs in ``folder`` on ``cohort``."""
    for old, new in _LABEL_MAPS.items():
        text = text.replace(old, new)
    return text.format(folder=folder).replace(f"{folder}/cohort", str(cohort))


@cache
def mask_model(base: Path) -> Path:
    """Train both stages on label maps, once a session; return the run that draws masks."""
    folder, cohort = base / "label_maps", trained(base).cohort
    folder.mkdir()
    for command, text, name in (
        ("prod9-train-autoencoder", STAGE1, "masks_stage1"),
        ("prod9-train-transformer", STAGE2, "masks_stage2"),
    ):
        config = folder / f"{name}.yaml"
        own = label_maps(text, folder, cohort)
        config.write_text(own.replace(f"{folder}/stage", f"{folder}/masks_stage"), encoding="utf-8")
        ran = run(command, "train", "--config", config)
        assert ran.code == 0, ran.err
    return folder / "masks_stage2"


def next_of(ran: Ran) -> tuple[str, ...]:
    """Return the words of the one next command that a command printed, which has to be a command that exists."""
    from tests.architecture.commands_of_pages import Line, parsed

    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("Next")]
    assert len(lines) == 1, ran.err
    words = tuple(shlex.split(lines[0].split(": ", 1)[1]))
    parsed(Line("next", words, None))
    return words
