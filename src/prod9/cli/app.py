"""``prod9``: the command that holds all others, each imported when it is used."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from prod9.cli.front.later import Entry, LaterGroup
from prod9.cli.shared import new_app, run_app

GROUPS: Mapping[str, tuple[str, str]] = {
    "data": ("data.group", "Make volumes to work with, and check those you have."),
    "configs": ("tools.configs", "List, show and explain configurations."),
    "generate": ("generate.group", "Generate volumes with trained models."),
    "tune": ("tools.tune", "Choose settings on validation patients."),
    "evaluate": ("judge.evaluate", "Measure generated volumes against real ones."),
    "weights": ("tools.weights", "List the packaged models; list, verify and import published weights."),
}
"""Groups of commands: the module of this package that holds their ``app``, and the first sentence of its help."""
COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": (
        "demo",
        "Simulate a cohort, train an autoencoder and a generator, generate every modality, score and draw.",
    ),
    "app": ("tools.local_app", "Serve a page on this computer alone: http://127.0.0.1:7860."),
    "doctor": (
        "tools.doctor",
        "Report versions, devices, memory, disk, weights found and optional packages.",
    ),
    "plan": (
        "tools.plan",
        "Write configs of every stage that the data allow, each fitting the dataset and the machine.",
    ),
    "train": (
        "door",
        "Train, validate and save as the config says; `--resume` goes on where a run stopped.",
    ),
    "finetune": (
        "finetune",
        "Train a model, and every stage that it builds on, further on your own patients.",
    ),
    "validate": ("door", "Measure a trained model on the validation patients."),
    "test": ("door", "Measure a trained model on the test patients, which nothing else sees."),
    "infer": (
        "door",
        "Reconstruct volumes: file → latent → file, with the geometry and intensities of the input.",
    ),
    "encode": (
        "encode",
        "Encode every volume of a stage-2 config with its autoencoder, into the store that training reads.",
    ),
    "augment": (
        "augment.command",
        "Make patients, audit them against real ones, throw out suspects by name, and write the data set.",
    ),
    "merge": (
        "parts.merge",
        "Join the parts of a command that ran with `--part` into what one run would have made.",
    ),
    "audit": (
        "judge.audit",
        "Compare every generated volume with its nearest training and its nearest held-out volume.",
    ),
    "report": (
        "judge.report",
        "Gather curves, scores, pictures, the copy audit and the configuration of RUN_DIR into one HTML file.",
    ),
    "export": (
        "tools.export",
        "Export a model for sharing, without paths of this computer and without anything executable.",
    ),
    "card": (
        "judge.card",
        "Write MODEL_CARD.md and DATA_CARD.md: Markdown with the metadata block of Hugging Face.",
    ),
}
"""Single commands: the module of this package whose ``app`` holds it, and the first sentence of its help."""
PANELS: Mapping[str, tuple[str, ...]] = {
    "Try it": ("demo", "app", "doctor"),
    "Your data": ("data", "plan", "configs"),
    "Train": ("train", "finetune", "validate", "test", "infer", "encode"),
    "Generate": ("generate", "augment", "merge", "tune"),
    "Judge": ("evaluate", "audit", "report"),
    "Share": ("export", "card", "weights"),
}
"""Titles in the help, in the order of the work, and what stands below each."""


def _entries() -> Iterator[tuple[str, Entry]]:
    for panel, names in PANELS.items():
        for name in names:
            module, about = GROUPS[name] if name in GROUPS else COMMANDS[name]
            yield name, Entry(module=module, about=about, panel=panel, is_group=name in GROUPS)


class _InOrderOfWork(LaterGroup):
    entries: ClassVar[Mapping[str, Entry]] = dict(_entries())


app = new_app(
    "Generative models of 3D medical images: from NIfTI folders to NIfTI volumes.\n\n"
    "Start with `prod9 demo`; on data of your own with `prod9 data check DIR`, then `prod9 plan DIR`, which prints the "
    "commands that follow.",
    cls=_InOrderOfWork,
)


def main() -> None:
    """Run ``prod9``."""
    run_app(app)
