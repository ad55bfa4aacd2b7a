"""By what an autoencoder whose decoder alone was trained further is known as one that makes the same latents."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prod9.config.schema import AutoencoderConfig, MaisiVAEConfig
from prod9.errors import CheckpointError
from prod9.models.checkpoint_header import Loaded, Opened
from prod9.models.checkpoint_weights import weights_of
from prod9.stages import STAGES

ENCODER_PARTS = ("encoder", "quant_conv_mu", "quant_conv_log_sigma", "quantizer")
"""The parts of an autoencoder that decide its latents and tokens."""
_FREE = frozenset({"use_checkpointing", "num_splits", "dim_split", "save_mem", "native_ops"})
"""Options of an autoencoder that trade memory for time and change no result."""


def encoder_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all that decides the latents, from the weights of an autoencoder by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.partition(".")[0] in ENCODER_PARTS:
            value = weights[name].detach().cpu()
            value = value.float() if value.is_floating_point() else value
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_record(weights: Mapping[str, Tensor], sources: list[str]) -> dict[str, Any]:
    """Return ``data.encoder`` of a header: the digest, and the SHA-256 of the files that the encoder is from."""
    return {"sha256": encoder_digest(weights), "of": sources}


def sources_of(header: Mapping[str, Any]) -> list[str]:
    """Return the SHA-256 of the checkpoints whose encoder the one of ``header`` was when it was written."""
    record = header["data"].get("encoder")
    found = record.get("of") if isinstance(record, dict) else None
    return [str(source) for source in found] if isinstance(found, list) else []


def has_encoder_of(base: Loaded[Any] | Opened, sha256: str) -> bool:
    """Return whether ``base`` has the encoder of the checkpoint ``sha256``, weight for weight.

    CheckpointError where it says so and its weights are others.
    """
    if sha256 not in sources_of(base.header):
        return False
    prefix = STAGES[base.header["stage"]].prefix
    weights = weights_of(base.state_dict, prefix) if isinstance(base, Opened) else base.network.state_dict()
    if base.header["data"]["encoder"].get("sha256") == encoder_digest(weights):
        return True
    raise CheckpointError(
        f"{base.path}: expected the encoder that it was tuned with, got other weights, as an export in float16 has "
        "them; its tokens may differ. Name the run, or export it in float32."
    )


def require_same_encoding(config: AutoencoderConfig | MaisiVAEConfig, opened: Opened) -> None:
    """Refuse to freeze the encoder of ``opened`` in a network of other options; CheckpointError.

    Strict loading compares weights alone, and symmetric levels or Haar bands have none.
    """
    own = config.model.model_dump(mode="json")
    found = type(config.model).model_validate(opened.header["architecture"]["autoencoder"])
    other = [
        f"model.{key}: expected {value!r}, got {own[key]!r}"
        for key, value in found.model_dump(mode="json").items()
        if key not in _FREE and value != own[key]
    ]
    if other:
        raise CheckpointError(
            f"{'; '.join(other[:4])}; freeze_encoder keeps the latents of {opened.path}: use the options of its model"
        )
