"""The weaker network of autoguidance: where it is, and whether it fits the network that it guides.

It is an earlier state of the same network or a smaller one: of the same autoencoder, and with the same output and
conditions. Its width and depth may differ.
"""

import re
from pathlib import Path
from typing import Any

from prod9.errors import CheckpointError
from prod9.models import export as exports
from prod9.models.checkpoint_header import Header, Loaded, Opened
from prod9.models.checkpoint_opening import open_checkpoint
from prod9.system.folders import finals

AUTO = "auto"
WEAK = "weak"
"""Folder of an export that holds the weaker network."""
EARLY = "early-step={step:06d}.ckpt"
"""Name of the checkpoint that ``callbacks.checkpoint.keep_early`` keeps."""
LATEST = 0.5
"""A kept checkpoint counts as weaker up to this share of the steps; later ones hardly differ from the network."""

_STEP = re.compile(r"(?:early|best)-step=(\d+)\.ckpt")
_SCALE = 0.01
"""Two scale factors of latents count as one if they differ by less than this share."""
_REMEDY = "name an earlier or a smaller model of the same autoencoder, labels and kind"


def open_weak(model: Loaded[Any] | Opened, place: str) -> Opened:
    """Open the weaker network of ``model``; CheckpointError where there is none, or one that does not fit.

    place: a run folder, a checkpoint or an export; ``auto`` for the earliest checkpoint in the folder of ``model``, or
    the folder ``weak`` of an export.
    """
    stage = model.header["stage"]
    opened = open_checkpoint(find_weak(model) if place == AUTO else place, stage=stage)
    require_weaker(model, opened)
    return opened


def find_weak(model: Loaded[Any] | Opened) -> Path:
    """Return where the weaker network of ``model`` is that was kept with it; CheckpointError where none was."""
    path, steps = model.path, model.header["step"]
    if path.is_dir():
        if exports.is_export(path / WEAK):
            return path / WEAK
        raise CheckpointError(
            f"{path}: expected a weak model in its folder {WEAK}, to guide by, got none; export the run again with "
            "--weak-model auto, or name one with --weak-model PATH."
        )
    found = {int(m[1]): file for file in finals(path.parent, "*.ckpt") if (m := _STEP.fullmatch(file.name))}
    first = min(found, default=None)
    if first is None or first > LATEST * steps:
        got = "none" if first is None else f"step {first} as the earliest"
        raise CheckpointError(
            f"{path.parent}: expected a checkpoint of at most {LATEST:.0%} of the model's {steps} steps, to guide by, "
            f"got {got}; name one with --weak-model PATH, or train with callbacks.checkpoint.keep_early=0.1."
        )
    return found[first]


def require_weaker(model: Loaded[Any] | Opened, weak: Opened) -> None:
    """Refuse, with a CheckpointError, a network that cannot be compared with ``model``."""
    if weak.sha256 == model.sha256:
        raise CheckpointError(
            f"{weak.path}: expected a weaker model than the one that it guides, got that model itself; {_REMEDY}."
        )
    wanted, found = _facts(model.header), _facts(weak.header)
    for name in wanted:
        if wanted[name] != found[name]:
            raise CheckpointError(
                f"{weak.path}: expected a weak model with the {name} of {model.path}, {_shown(wanted[name])}, got "
                f"{_shown(found[name])}; {_REMEDY}."
            )
    ours, theirs = (header["data"].get("scale_factor") for header in (model.header, weak.header))
    if ours is not None and (theirs is None or abs(ours - theirs) > _SCALE * abs(ours)):
        raise CheckpointError(
            f"{weak.path}: expected a weak model with the scale factor of latents of {model.path}, {ours:.4g}, got "
            f"{theirs}; {_REMEDY}, trained on the same data."
        )


def _facts(header: Header) -> dict[str, Any]:
    """Return what both networks must have in common."""
    config, network = header["config"], header["architecture"]
    facts: dict[str, Any] = {
        "autoencoder": header["inputs"].get("autoencoder", {}).get("sha256"),
        "labels": header["data"].get("label_map"),
    }
    if "transformer" in network:
        section = network["transformer"]
        context = config.get("context") or {}
        return facts | {
            "kind": section.get("kind"),
            "heads (model.groups)": section.get("groups"),
            "number of classes": section.get("num_classes"),
            "context.source": context.get("source", "latent"),
        }
    section = network.get("diffusion", {})
    inputs = [name for name in section if name.startswith("include_") and name.endswith("_input")]
    return facts | {
        "number of classes": section.get("num_class_embeds"),
        "conditions": sorted(name for name in inputs if section[name]),
        "flow.num_train_timesteps": config.get("flow", {}).get("num_train_timesteps"),
    }


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
