"""The models that come with prod9, by name. A plain table; nothing here imports torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

PREFIX = "demo/"
"""What the names of packaged models begin with."""
LICENCE = "Apache-2.0"
"""Of the packaged weights, as of the code: they saw simulated patients only."""


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model that is installed with prod9.

    Attributes:
        stage: the name of its config in the demo, and of its folder.
        short: the name by what it is for; None where there is just the one by its stage.
        does: what it does, in words.
        minutes: of CPU time, one thread, that `prod9 finetune` takes without ``--budget``; None where that was not
            measured. ``docs/tools/finetune_table.py`` measures it.
        measured: what fine-tuning brought in that measurement, in words; None where it was not.
    """

    stage: str
    short: str | None = None
    does: str
    minutes: float | None = None
    measured: str | None = None

    @property
    def name(self) -> str:
        """The name by its stage."""
        return PREFIX + self.stage

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the short one first."""
        return (self.name,) if self.short is None else (PREFIX + self.short, self.name)

    @property
    def folder(self) -> Path:
        """Its export folder."""
        return Path(str(files("prod9"))) / "demo" / "weights" / self.stage

    @property
    def num_bytes(self) -> int:
        """Size of its weights."""
        return (self.folder / "model.safetensors").stat().st_size

    @property
    def header(self) -> dict[str, Any]:
        """The header of its export."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["prod9"]

    @property
    def spacing_mm(self) -> float:
        """Voxel size of the scans that it saw."""
        return float(self.header["data"]["spacing"][0])

    @property
    def trained_on(self) -> str:
        """What it saw, in words."""
        count = len(self.header["split"]["train"])
        return f"{count} simulated patients, {self.spacing_mm:g} mm voxels"


PACKAGED: Mapping[str, Packaged] = {
    model.stage: model
    for model in (
        Packaged(
            stage="stage2",
            short="translate",
            does="makes a missing T1, T1ce, T2 or FLAIR from the others",
            minutes=9.0,
            measured="on 6 simulated patients of another scanner fine-tuning took 9 minutes of CPU time and changed "
            "PSNR on 8 others by -0.3 to +0.1 dB; compare the result with the packaged model before you use it",
        ),
        Packaged(
            stage="stage2_label",
            short="label",
            does="generates a T1, T1ce, T2 or FLAIR, and draws a region again",
            minutes=2.3,
        ),
        Packaged(stage="stage1", short="autoencoder", does="turns volumes into tokens and back"),
        Packaged(stage="stage2_refiner", does="corrects what demo/translate makes, which takes it by itself"),
        Packaged(stage="maisi_vae", does="turns volumes into MAISI's latents and back"),
    )
}
"""By stage, the most useful first."""


def packaged_named(name: str) -> Packaged | None:
    """Return the packaged model called ``name``; None for any other name."""
    return next((model for model in PACKAGED.values() if name in model.names), None)


def packaged_at(folder: Path) -> Packaged | None:
    """Return the packaged model whose folder is ``folder``, however that is written; None for any other place."""
    place = folder.resolve()  # models name what they build on as `../stage1`
    return next((model for model in PACKAGED.values() if model.folder.resolve() == place), None)


def named_in(text: str) -> str:
    """Return ``text`` with the names of packaged models in the place of their folders."""
    for model in PACKAGED.values():
        text = re.sub(f"{re.escape(str(model.folder))}(?![\\w/\\\\])", model.names[0], text)
    return text


def packaged_with(sha256: str) -> Packaged | None:
    """Return the packaged model whose weights have this SHA-256; None where none has."""
    for model in PACKAGED.values():
        content = json.loads((model.folder / "manifest.json").read_text(encoding="utf-8"))
        if content["files"]["model.safetensors"]["sha256"] == sha256:
            return model
    return None
