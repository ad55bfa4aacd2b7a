"""What may differ when a run goes on from a checkpoint, and what may not."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from prod9.config.schema import RunConfig
from prod9.data.splits import Split
from prod9.errors import CheckpointError
from prod9.models.checkpoint_manager import Header

log = logging.getLogger("prod9")


def refuse_others(
    header: Header, config: RunConfig, *, architecture: Mapping[str, Any], split: Split
) -> None:
    """Refuse to go on with another network, other patients or another optimizer (CheckpointError).

    Args:
        header: of the checkpoint.
        config: of the run now.
        architecture: of the run now.
        split: of its patients now.
    """
    place = config.output_dir
    found = _completed(header["architecture"], architecture, config)
    if found != architecture:
        raise CheckpointError(
            f"{place}: expected a checkpoint of the configured architecture, got another "
            f"({difference(found, architecture)}); restore the setting, or "
            "start in a new output_dir."
        )
    if header["split"] != split.to_dict():
        raise CheckpointError(
            f"{place}: expected the patients that the checkpoint was trained with, got another "
            "division of data.root: held-out ones may have been trained on. Restore the data and split.json, "
            "or start in a new output_dir."
        )
    frozen, now = header["config"].get("freeze_encoder", False), config.needs_start
    if frozen != now:
        raise CheckpointError(
            f"{place}: freeze_encoder: expected {str(frozen).lower()}, as in the checkpoint, got {str(now).lower()}; "
            "restore the setting, or start in a new output_dir with --init-from."
        )
    had_muon, has_muon = bool(header["config"]["training"].get("muon")), config.training.muon is not None
    if had_muon != has_muon:
        raise CheckpointError(
            f"{place}: training.muon: expected the optimizer of the checkpoint, trained "
            f"{'with' if had_muon else 'without'} it, got the other, which cannot go on from its state; restore "
            "the setting, or start in a new output_dir with --init-from."
        )


def _completed(found: Mapping[str, Any], wanted: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return ``found`` with the defaults of options of the model that its checkpoint is older than."""
    kind, own = type(config.model), config.model.model_dump(mode="json")
    return {
        name: kind.model_construct(**section).model_dump(mode="json", warnings=False)
        if wanted.get(name) == own
        else section
        for name, section in found.items()
    }


def conditions_of(trainer: Any) -> dict[str, Any]:
    """Return what decides the last bits of a result beside config and data."""
    device = trainer.strategy.root_device.type
    return {
        "threads": torch.get_num_threads() if device == "cpu" else 0,
        "device": device,
        "precision": str(trainer.precision),
        "processes": int(trainer.world_size),
        "torch": str(torch.__version__),
    }


def content_of(trainer: Any) -> dict[str, str]:
    """Return a digest of the files of each patient that the run looks at, by patient; on the first rank."""
    digests = getattr(trainer.datamodule, "content_digests", None)
    return dict(digests()) if trainer.is_global_zero and digests is not None else {}


def warn_of_differences(kept: Mapping[str, Any], trainer: Any) -> None:
    """Name what differs from the session before and changes the result; ``kept``: ``prod9_run`` of the checkpoint."""
    if not trainer.is_global_zero:
        return
    now, before = conditions_of(trainer), kept.get("conditions") or {}
    changed = [
        f"{name} was {before[name]}, is {now[name]}"
        for name in now
        if before.get(name, now[name]) != now[name]
    ]
    if changed:
        log.warning(
            "Resuming under other conditions than before: %s. The result will not equal that of an uninterrupted "
            "run bit for bit.", "; ".join(changed),
        )  # fmt: skip
    found, recorded = content_of(trainer), kept.get("content") or {}
    other = sorted(name for name in recorded if found.get(name, recorded[name]) != recorded[name])
    if other:
        log.warning(
            "Resuming with other files than before: the content of %d cases changed (%s%s). The result will not "
            "equal that of an uninterrupted run; restore the files, or start in a new output_dir.",
            len(other), ", ".join(other[:5]), ", …" if len(other) > 5 else "",
        )  # fmt: skip


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the first four keys in which two architectures differ, with both values."""
    parts: list[str] = []
    for name in sorted(set(found) | set(wanted)):
        old, new = found.get(name, {}), wanted.get(name, {})
        changed = [key for key in sorted(set(old) | set(new)) if old.get(key) != new.get(key)]
        parts += [f"{name}.{key}: {old.get(key)} there, {new.get(key)} here" for key in changed]
    return "; ".join(parts[:4])
