"""From what a dataset is and what a machine has to configs that run: the size of crops, batches and networks.

The largest model comes first; whatever does not fit into the memory is made cheaper in turn: smaller crops and
batches, then recomputed activations, then a narrower network. Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from prod9.errors import ConfigError
from prod9.training.config import config_from_dict
from prod9.training.config_schema import AutoencoderConfig, RunConfig, TransformerConfig
from prod9.training.resources import OVERHEAD, Device, Resources, estimate, stage1_multiplications

GIB = 1024**3
_USABLE = 0.9
_PROCESS_BYTES = int(0.94 * GIB)
"""Python, torch, MONAI and Lightning, before anything is trained."""
_TOKENS = {4: 4096, 8: 12000}
"""Downsampling factor → most tokens a volume that a transformer attends to at ease; beyond the last it is 16."""
_WIDTHS: Mapping[Device, Sequence[tuple[int, int, int]]] = {
    "cuda": ((64, 128, 256), (48, 96, 192), (32, 64, 128), (16, 32, 64)),
    "cpu": ((16, 32, 64), (8, 16, 32)),
}
_CROPS = (128, 96, 80, 64, 48, 32)
_BATCHES = (4, 2, 1)
_WHOLE_VOXELS = 64**3
"""Volumes up to this are trained on whole."""
_DECODERS: Mapping[Device, Sequence[tuple[int, int, int]]] = {
    "cuda": ((768, 24, 12), (512, 12, 8), (384, 12, 6), (256, 8, 4), (128, 6, 4)),
    "cpu": ((192, 6, 6), (128, 6, 4), (64, 4, 4)),
}
"""Width, blocks, heads."""
_PARAMETERS_A_TOKEN = 20
"""Larger transformers than this, over all tokens there are to train on, learn the patients by heart."""
_STEPS: Mapping[Device, tuple[int, int]] = {"cuda": (150_000, 200_000), "cpu": (1000, 3000)}
"""Steps of stage 1 and 2: on a CPU, what a person waits for."""


@dataclass(frozen=True)
class StagePlan:
    """One config and what it needs. values: as written to the file. multiplications: of a training step."""

    values: dict[str, Any]
    config: RunConfig
    resources: Resources
    multiplications: float
    device: Device

    @property
    def peak_bytes(self) -> int:
        """Return the peak memory: of a GPU, or of the whole process on a CPU, libraries included.

        Processes of two sizes measured on a CPU stayed 5 and 15% below this.
        """
        return peak_bytes(self.resources, self.device)

    def seconds(self, rate: float) -> float:
        """Return the seconds of a step at ``rate`` multiply-adds a second."""
        return self.multiplications / rate


def plan_stages(
    fingerprint: Mapping[str, Any], *, memory_bytes: int, device: Device, output_dir: str
) -> tuple[StagePlan, StagePlan]:
    """Return plans of stage 1 and of a label-conditional stage 2 on it.

    fingerprint: of ``prod9 data info``. memory_bytes: of the device. output_dir: below it the runs go. Raises
    ConfigError when not even the smallest network fits.
    """
    data = _data(fingerprint)
    grid, budget = tuple(fingerprint["grid"]), int(_USABLE * memory_bytes)
    factor = downsampling_for(grid)
    stage1 = _first_fit(_stage1_candidates(data, factor, device, output_dir), budget, device, None)
    mirrored = 2 * fingerprint["cases"] * len(data["modalities"])
    most = _PARAMETERS_A_TOKEN * mirrored * stage1.resources.tokens
    candidates = _stage2_candidates(data, device, output_dir)
    return stage1, _first_fit(candidates, budget, device, stage1.config, most_parameters=most)


def peak_bytes(needs: Resources, device: Device) -> int:
    """Return the peak of ``needs`` on ``device``: a CPU has no workspaces to allow for, but a process around it."""
    return int(needs.memory_bytes / OVERHEAD) + _PROCESS_BYTES if device == "cpu" else needs.memory_bytes


def downsampling_for(grid: Sequence[int]) -> int:
    """Return the voxels a token spans along each axis: the fewest that leave tokens to attend to at ease."""
    return next((factor for factor, most in _TOKENS.items() if prod(grid) / factor**3 <= most), 16)


def _first_fit(
    candidates: Iterator[dict[str, Any]],
    budget: int,
    device: Device,
    stage1: RunConfig | None,
    *,
    most_parameters: float = float("inf"),
) -> StagePlan:
    """Return the first candidate within the budget, and within the parameters unless it is the smallest network."""
    smallest = last = None
    for values in candidates:
        config = config_from_dict(values, source="plan")
        autoencoder = stage1.model if isinstance(stage1, AutoencoderConfig) else None
        needs = estimate(config, autoencoder=autoencoder, device=device)
        if peak_bytes(needs, device) <= budget:
            last = StagePlan(values, config, needs, _multiplications(config, needs), device)
            if needs.parameters <= most_parameters:
                return last
        peak = peak_bytes(needs, device)
        smallest = peak if smallest is None else min(smallest, peak)
    if last is not None:
        return last
    raise ConfigError(
        f"--memory: expected at least {(smallest or 0) / _USABLE / GIB:.1f} GiB for the smallest network on this "
        f"grid, got {budget / _USABLE / GIB:.1f}; resample to larger voxels (data.spacing), or use a larger device"
    )


def _data(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    modalities = [
        name for name, number in fingerprint["modalities"].items() if number == fingerprint["cases"]
    ]
    if not modalities:
        raise ConfigError("fingerprint: expected a modality that every case has, got none; leave cases out")
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    return {
        "root": fingerprint["root"],
        **({} if fingerprint["layout"] == "brats" else {"layout": fingerprint["layout"]}),
        "modalities": modalities,
        "label_map": {name: label for label, name in enumerate(modalities)},
        "split": shares,
        **({"spacing": fingerprint["spacing_mm"]} if fingerprint["resample"] else {}),
        "grid": list(fingerprint["grid"]),
    }


def _stage1_candidates(
    data: Mapping[str, Any], factor: int, device: Device, output_dir: str
) -> Iterator[dict[str, Any]]:
    folds = {4: (1, 3), 8: (2, 3), 16: (2, 4)}
    space_to_depth, resolutions = folds[factor]
    steps = _STEPS[device][0]
    for widths, checkpointing in product(_WIDTHS[device], (False, True)):
        channels = [*widths, widths[-1]][:resolutions]
        for crop, batch in _crops(data["grid"], factor):
            yield {
                "stage": "autoencoder",
                "output_dir": f"{output_dir}/stage1",
                "data": {
                    **data,
                    **({} if crop is None else {"crop_size": crop}),
                    "batch_size": batch,
                    "cache": "disk" if device == "cuda" else "memory",
                    "num_workers": 4 if device == "cuda" else 0,
                    "augment": {"flip_prob": 0.5, "gamma_prob": 0.2, "scale_prob": 0.2},
                },
                "model": {
                    "kind": "fsq",
                    "levels": [8, 8, 8, 6, 5],
                    "space_to_depth": space_to_depth,
                    "num_channels": channels,
                    "num_res_blocks": [2 if device == "cuda" else 1] * resolutions,
                    "norm_num_groups": min(32, widths[0] // 2),
                    "use_checkpointing": checkpointing,
                },
                "loss": {
                    "perceptual": {"network": "discriminator_features", "weight": 0.1},
                    "adversarial": {
                        "start_step": steps // 8,
                        "discriminator": {
                            "channels": 32 if device == "cuda" else 8,
                            "num_layers_d": _discriminator_layers(crop or data["grid"]),
                        },
                    },
                },
                "training": _training(steps, 2e-4 if device == "cuda" else 1e-3),
            }


def _crops(grid: Sequence[int], factor: int) -> list[tuple[list[int] | None, int]]:
    """Return crop and batch, the most voxels first; None for whole volumes."""
    if prod(grid) <= _WHOLE_VOXELS:
        return [(None, batch) for batch in _BATCHES]
    sides = [side for side in _CROPS if side <= min(grid) and side % factor == 0]
    pairs: list[tuple[list[int] | None, int]] = [([side] * 3, batch) for side in sides for batch in _BATCHES]
    return sorted(pairs, key=lambda pair: -prod(pair[0] or grid) * pair[1]) or [(None, 1)]


def _discriminator_layers(sides: Sequence[int]) -> int:
    """Return how many strided layers (three at most) leave a patch of 3 voxels of the shortest side."""
    return max(1, min(3, (min(sides) // 3).bit_length() - 1))


def _stage2_candidates(data: Mapping[str, Any], device: Device, output_dir: str) -> Iterator[dict[str, Any]]:
    steps = _STEPS[device][1]
    for (width, blocks, heads), checkpointing, batch in product(_DECODERS[device], (False, True), _BATCHES):
        yield {
            "stage": "transformer",
            "output_dir": f"{output_dir}/stage2_label",
            "inputs": {"autoencoder": f"{output_dir}/stage1"},
            "data": {
                **data,
                "batch_size": batch,
                "num_workers": 4 if device == "cuda" else 0,
                "cache": "none",
            },
            "model": {
                "kind": "label_conditional",
                "num_classes": len(data["modalities"]),
                "embed_dim": width,
                "num_blocks": blocks,
                "num_heads": heads,
                "use_checkpointing": checkpointing,
            },
            "masking": {"scheduler_type": "arccos"},
            "sampler": {
                "steps": 24,
                "order": "halton",
                "guidance_scale": 1.5,
                "guidance_interval": [0.2, 1.0],
            },
            "training": {**_training(steps, 2e-4 if device == "cuda" else 1e-3), "betas": [0.9, 0.98]},
        }


def _training(steps: int, rate: float) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "learning_rate": rate,
        "lr_schedule": {"kind": "cosine", "warmup_steps": steps // 100},
        "ema": {"decay": 0.9995 if steps > 10_000 else 0.99, "start_step": steps // 10},
        "validate_every_steps": max(1, steps // 30),
    }


def _multiplications(config: RunConfig, needs: Resources) -> float:
    """Return the multiply-adds of a training step, forward and backward."""
    if isinstance(config, AutoencoderConfig):
        return stage1_multiplications(config)
    assert isinstance(config, TransformerConfig)
    positions, model = needs.positions, config.model
    attention = 2 * positions**2 * model.embed_dim * model.num_blocks
    return 3 * config.data.batch_size * (needs.parameters * positions + attention)
