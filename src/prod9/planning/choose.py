"""From what a dataset is and what a machine has to configs that run: the size of crops, batches and networks.

The largest model comes first; whatever does not fit into the memory is made cheaper in turn: smaller crops and
batches, then recomputed activations, then a narrower network. Nothing here imports torch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any, Literal

from prod9.config.load import config_from_dict
from prod9.config.schema import AutoencoderConfig, RunConfig, TransformerConfig
from prod9.errors import ConfigError
from prod9.planning.estimates import OVERHEAD, Device, Resources, estimate, stage1_multiplications

GIB = 1024**3
USABLE = 0.9
"""Share of a device's memory that is planned with."""
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
_SMALL_BATCHES: Mapping[Device, tuple[int, ...]] = {"cuda": (32, 16, 8, 4, 2, 1), "cpu": (8, 4, 2, 1)}
"""Of MedMNIST3D, whose samples are small and many."""
_WHOLE_VOXELS = 64**3
"""Volumes up to this are trained on whole."""
DECODERS: Mapping[Device, Sequence[tuple[int, int, int]]] = {
    "cuda": ((768, 24, 12), (512, 12, 8), (384, 12, 6), (256, 8, 4), (128, 6, 4)),
    "cpu": ((192, 6, 6), (128, 6, 4), (64, 4, 4)),
}
"""Width, blocks, heads."""
PARAMETERS_A_TOKEN = 20
"""Larger transformers than this, over all tokens there are to train on, learn the patients by heart."""
_FOLDS = {"fsq": {4: (1, 3), 8: (2, 3), 16: (2, 4)}, "kl": {4: (2, 2)}}
"""Family and downsampling factor → voxels folded into channels along each axis, resolutions."""
STEPS: Mapping[Device, tuple[int, int]] = {"cuda": (150_000, 200_000), "cpu": (1000, 3000)}
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
    data = data_section(fingerprint)
    grid, budget = tuple(fingerprint["grid"]), int(USABLE * memory_bytes)
    factor = downsampling_for(grid)
    candidates = stage1_candidates(data, factor, device, output_dir)
    stage1 = first_fit(candidates, budget, device, partial(estimate, device=device), _multiplications)
    assert isinstance(stage1.config, AutoencoderConfig)
    most = PARAMETERS_A_TOKEN * 2 * images_of(fingerprint) * stage1.resources.tokens
    candidates = _stage2_candidates(data, device, output_dir)
    needs = partial(estimate, autoencoder=stage1.config.model, device=device)
    return stage1, first_fit(candidates, budget, device, needs, _multiplications, most_parameters=most)


def images_of(fingerprint: Mapping[str, Any]) -> int:
    """Return how many volumes there are to encode, mirrors not counted."""
    return fingerprint["cases"] * sum(
        number == fingerprint["cases"] for number in fingerprint["modalities"].values()
    )


def peak_bytes(needs: Resources, device: Device) -> int:
    """Return the peak of ``needs`` on ``device``: a CPU has no workspaces to allow for, but a process around it."""
    return int(needs.memory_bytes / OVERHEAD) + _PROCESS_BYTES if device == "cpu" else needs.memory_bytes


def downsampling_for(grid: Sequence[int]) -> int:
    """Return the voxels a token spans along each axis: the fewest that leave tokens to attend to at ease."""
    return next((factor for factor, most in _TOKENS.items() if prod(grid) / factor**3 <= most), 16)


def first_fit(
    candidates: Iterator[dict[str, Any]],
    budget: int,
    device: Device,
    needs_of: Callable[[RunConfig], Resources],
    work_of: Callable[[RunConfig, Resources], float],
    *,
    most_parameters: float = float("inf"),
) -> StagePlan:
    """Return the first candidate within the budget, and within the parameters unless it is the smallest network.

    needs_of: memory and sizes of a candidate. work_of: multiply-adds of one of its training steps.
    """
    smallest = last = None
    for values in candidates:
        config = config_from_dict(values, source="plan")
        needs = needs_of(config)
        if peak_bytes(needs, device) <= budget:
            last = StagePlan(values, config, needs, work_of(config, needs), device)
            if needs.parameters <= most_parameters:
                return last
        peak = peak_bytes(needs, device)
        smallest = peak if smallest is None else min(smallest, peak)
    if last is not None:
        return last
    raise ConfigError(
        f"--memory: expected at least {(smallest or 0) / USABLE / GIB:.1f} GiB for the smallest network on this "
        f"grid, got {budget / USABLE / GIB:.1f}; resample to larger voxels (data.spacing), or use a larger device"
    )


def data_section(fingerprint: Mapping[str, Any], *, first_label: int = 0) -> dict[str, Any]:
    """Return what every config says of the data, with ``modalities`` as a key for all that count them."""
    if fingerprint["layout"] == "medmnist3d":
        mirrored = fingerprint["name"] != "organmnist3d"  # which tells left from right
        return {
            "kind": "medmnist3d",
            "root": fingerprint["root"],
            "name": fingerprint["name"],
            "size": fingerprint["size"],
            "grid": list(fingerprint["grid"]),
            **({"first_label": first_label} if first_label else {}),
            "augment": {"flip_prob": 0.5 if mirrored else 0.0},
            "store_flips": mirrored,
            "modalities": list(fingerprint["classes"]["train"]),
        }
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
        "label_map": {name: label for label, name in enumerate(modalities, first_label)},
        "split": shares,
        **({"spacing": fingerprint["spacing_mm"]} if fingerprint["resample"] else {}),
        "grid": list(fingerprint["grid"]),
    }


def batches(data: Mapping[str, Any], device: Device) -> tuple[int, ...]:
    """Return the batch sizes to try, the largest first."""
    return _SMALL_BATCHES[device] if data.get("kind") == "medmnist3d" else _BATCHES


def section(
    data: Mapping[str, Any],
    device: Device,
    *,
    batch_size: int,
    cache: str,
    crop: Sequence[int] | None = None,
    augment: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return ``data`` as a config has it; MedMNIST3D knows neither a cache nor a choice of classes."""
    small = data.get("kind") == "medmnist3d"
    return {
        **{key: value for key, value in data.items() if not (small and key == "modalities")},
        **({} if crop is None else {"crop_size": list(crop)}),
        **({} if small else {"cache": cache}),
        **({"augment": {**augment, **data.get("augment", {})}} if augment else {}),
        "batch_size": batch_size,
        "num_workers": 4 if device == "cuda" else 0,
    }


def stage1_candidates(
    data: Mapping[str, Any],
    factor: int,
    device: Device,
    output_dir: str,
    *,
    kind: Literal["fsq", "kl"] = "fsq",
) -> Iterator[dict[str, Any]]:
    """Yield configs of stage 1 of either family, the largest first. factor: voxels a latent position spans."""
    space_to_depth, resolutions = _FOLDS[kind][factor]
    name, latent = ("stage1", {"levels": [8, 8, 8, 6, 5]}) if kind == "fsq" else (
        "maisi_vae", {"latent_channels": 4}
    )  # fmt: skip
    steps = STEPS[device][0]
    for widths, checkpointing in product(_WIDTHS[device], (False, True)):
        channels = [*widths, widths[-1]][:resolutions]
        for crop, batch in _crops(data["grid"], factor, batches(data, device)):
            yield {
                "stage": "autoencoder" if kind == "fsq" else "maisi_vae",
                "output_dir": f"{output_dir}/{name}",
                "data": section(
                    data,
                    device,
                    batch_size=batch,
                    cache="disk" if device == "cuda" else "memory",
                    crop=crop,
                    augment={"flip_prob": 0.5, "gamma_prob": 0.2, "scale_prob": 0.2},
                ),
                "model": {
                    "kind": kind,
                    **latent,
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
                "training": training_section(steps, 2e-4 if device == "cuda" else 1e-3),
            }


def _crops(grid: Sequence[int], factor: int, sizes: Sequence[int]) -> list[tuple[list[int] | None, int]]:
    """Return crop and batch, the most voxels first; None for whole volumes."""
    if prod(grid) <= _WHOLE_VOXELS:
        return [(None, batch) for batch in sizes]
    sides = [side for side in _CROPS if side <= min(grid) and side % factor == 0]
    pairs: list[tuple[list[int] | None, int]] = [([side] * 3, batch) for side in sides for batch in sizes]
    return sorted(pairs, key=lambda pair: -prod(pair[0] or grid) * pair[1]) or [(None, 1)]


def _discriminator_layers(sides: Sequence[int]) -> int:
    """Return how many strided layers (three at most) leave a patch of 3 voxels of the shortest side."""
    return max(1, min(3, (min(sides) // 3).bit_length() - 1))


def _stage2_candidates(data: Mapping[str, Any], device: Device, output_dir: str) -> Iterator[dict[str, Any]]:
    yield from decoder_candidates(
        data,
        device,
        output_dir=f"{output_dir}/stage2_label",
        autoencoder=f"{output_dir}/stage1",
        model={"kind": "label_conditional"},
        sampler={"guidance_scale": 1.5, "guidance_interval": [0.2, 1.0]},
    )


def decoder_candidates(
    data: Mapping[str, Any],
    device: Device,
    *,
    output_dir: str,
    autoencoder: str,
    model: Mapping[str, Any],
    sampler: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Iterator[dict[str, Any]]:
    """Yield configurations of stage 2, the largest decoder first; ``sections`` are added as they are."""
    steps = STEPS[device][1]
    for (width, blocks, heads), checkpointing, batch in product(
        DECODERS[device], (False, True), batches(data, device)
    ):
        yield {
            "stage": "transformer",
            "output_dir": output_dir,
            "inputs": {"autoencoder": autoencoder},
            "data": section(data, device, batch_size=batch, cache="none"),
            "model": {
                "num_classes": len(data["modalities"]),
                "embed_dim": width,
                "num_blocks": blocks,
                "num_heads": heads,
                "use_checkpointing": checkpointing,
                **model,
            },
            "masking": {"scheduler_type": "arccos"},
            "sampler": {"steps": 24, "order": "halton", **(sampler or {})},
            "training": {**training_section(steps, 2e-4 if device == "cuda" else 1e-3), "betas": [0.9, 0.98]},
            **sections,
        }


def training_section(steps: int, rate: float) -> dict[str, Any]:
    """Return the steps, their rates and what happens how often."""
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
