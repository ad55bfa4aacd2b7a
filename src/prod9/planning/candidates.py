"""Configurations to choose from, one generator per stage, the largest network first.

Whatever does not fit into the memory is made cheaper in turn: smaller crops and batches, then recomputed activations,
then a narrower network. Candidates are plain values, as they are written to files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from prod9.errors import ConfigError
from prod9.planning.footprint import Device

Values = dict[str, Any]
_WIDTHS: Mapping[Device, Sequence[tuple[int, int, int]]] = {
    "cuda": ((64, 128, 256), (48, 96, 192), (32, 64, 128), (16, 32, 64)),
    "cpu": ((16, 32, 64), (8, 16, 32)),
}
_CROPS = (128, 96, 80, 64, 48, 32)
_BATCHES: Mapping[Device, tuple[int, ...]] = {"cuda": (16, 8, 4, 2, 1), "cpu": (4, 2, 1)}
_USUAL_BATCH = 4
"""The batch that the steps are meant for; larger ones take fewer steps, so that the run sees as many volumes."""
_SMALL_BATCHES: Mapping[Device, tuple[int, ...]] = {"cuda": (32, 16, 8, 4, 2, 1), "cpu": (8, 4, 2, 1)}
"""For MedMNIST3D, whose samples are small and many."""
_WHOLE_VOXELS = 64**3
"""Training takes volumes up to this size whole."""
_DECODERS: Mapping[Device, Sequence[tuple[int, int, int]]] = {
    "cuda": ((1024, 24, 16), (768, 24, 12), (512, 12, 8), (384, 12, 6), (256, 8, 4), (128, 6, 4)),
    "cpu": ((192, 6, 6), (128, 6, 4), (64, 4, 4)),
}
"""Width, blocks, heads."""
_FOLDS = {"fsq": {4: (1, 3), 8: (2, 3), 16: (2, 4)}, "kl": {4: (2, 2)}}
"""Kind and downsampling factor → voxels folded into channels along each axis, resolutions."""
_FLOWS: Mapping[Device, tuple[tuple[int, int, int], ...]] = {
    "cuda": ((128, 256, 512), (64, 128, 256), (32, 64, 128)),
    "cpu": ((32, 64, 64), (16, 32, 32)),
}
_ENCODERS: Mapping[Device, tuple[tuple[int, ...], ...]] = {
    "cuda": ((16, 32, 64), (8, 16, 32), (4, 8)),
    "cpu": ((8, 16), (4, 8)),
}
"""Widths of the encoder of a control network's condition."""
_STEPS: Mapping[Device, tuple[int, int]] = {"cuda": (150_000, 200_000), "cpu": (1000, 3000)}
"""Steps of stage 1 and 2: on a CPU, what a person waits for."""
_PATCHED_TOKENS = 4096
"""From this many tokens per volume on, a context of several volumes is read 2³ tokens at a time."""
FLOW_FACTOR = 4
"""Voxels along each axis that become one position of MAISI's latent."""
_MASKGIT_SAMPLER = {"steps": 24, "order": "halton"}
_GUIDANCE = {"guidance_scale": 1.5, "guidance_interval": [0.2, 1.0]}
_FLOW_SAMPLER = {"steps": 30, "guidance_scale": 1.0}
_MASKING = {"scheduler_type": "arccos"}


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What all stages have in common, and the candidates of each.

    Attributes:
        fingerprint: of ``prod9 data info``.
        device: where it is trained.
        output_dir: the folder below which the runs go.
        first_label: class label of the first modality.
    """

    fingerprint: Mapping[str, Any]
    device: Device
    output_dir: str
    first_label: int = 0

    @property
    def small(self) -> bool:
        """Whether the data are one file of MedMNIST3D."""
        return self.fingerprint["layout"] == "medmnist3d"

    @property
    def modalities(self) -> list[str]:
        """The modalities that every case has, or the classes of MedMNIST3D; ConfigError for none."""
        if self.small:
            return list(self.fingerprint["classes"]["train"])
        cases, of_cases = self.fingerprint["cases"], self.fingerprint["modalities"]
        modalities = [name for name, number in of_cases.items() if number == cases]
        if not modalities:
            raise ConfigError(
                "fingerprint: expected a modality that every case has, got none; leave cases out"
            )
        return modalities

    def stage1(self, kind: str, factor: int) -> Iterator[Values]:
        """Yield stage 1. kind: ``fsq`` or ``kl``. factor: voxels that a latent position spans along each axis."""
        stage, name, latent = {
            "fsq": ("autoencoder", "stage1", {"levels": [6] * 10}),
            "kl": ("maisi_vae", "maisi_vae", {"latent_channels": 4}),
        }[kind]
        (space_to_depth, resolutions), grid = _FOLDS[kind][factor], self.fingerprint["grid"]
        on_cuda = self.device == "cuda"
        augment = {"flip_prob": 0.5, "gamma_prob": 0.2, "scale_prob": 0.2}
        for widths, checkpointing in product(_WIDTHS[self.device], (False, True)):
            for crop, batch in _crops(grid, factor, self._batches()):
                steps = self._steps(_STEPS[self.device][0], batch)
                yield {
                    "stage": stage,
                    "output_dir": f"{self.output_dir}/{name}",
                    "data": self._data(
                        batch, cache="disk" if on_cuda else "memory", crop=crop, augment=augment
                    ),
                    "model": {
                        "kind": kind,
                        **latent,
                        "space_to_depth": space_to_depth,
                        "num_channels": [*widths, widths[-1]][:resolutions],
                        "num_res_blocks": [2 if on_cuda else 1] * resolutions,
                        "norm_num_groups": min(32, widths[0] // 2),
                        "use_checkpointing": checkpointing,
                    },
                    "loss": {
                        "perceptual": {"network": "discriminator_features", "weight": 0.1},
                        "adversarial": {
                            "start_step": steps // 8,
                            "discriminator": {
                                "channels": 32 if on_cuda else 8,
                                "num_layers_d": _discriminator_layers(crop or grid),
                            },
                        },
                    },
                    "training": _training(steps, 2e-4 if on_cuda else 1e-3),
                }

    def label(self) -> Iterator[Values]:
        """Yield the label-conditional stage 2 of MaskGiT."""
        yield from self._decoders("stage2_label", {"kind": "label_conditional"}, sampler=_GUIDANCE)

    def in_context(self, tokens: int) -> Iterator[Values]:
        """Yield stage 2 of MaskGiT that reads other volumes. tokens: of a volume."""
        patch = 2 if tokens >= _PATCHED_TOKENS else 1
        few = {"min_sources": 0, "max_examples": 4} if self.small else {"min_sources": 1}
        yield from self._decoders(
            "stage2",
            {
                "kind": "single_stream",
                "patch_size": patch,
                "context_stride": 1 if patch == 2 else 2,
                "aligned": not self.small,
            },
            context={"source": "latent", **few},
        )

    def flow(self) -> Iterator[Values]:
        """Yield stage 2 of MAISI."""
        # A latent must halve as often as there are resolutions after the first.
        latent = [side // FLOW_FACTOR for side in self.fingerprint["grid"]]
        levels = max(depth for depth in (1, 2, 3) if all(side % 2 ** (depth - 1) == 0 for side in latent))
        attended = prod(latent) // 8 ** (levels - 1) <= _PATCHED_TOKENS
        on_cuda = self.device == "cuda"
        for widths, checkpointing, batch in product(_FLOWS[self.device], (False, True), self._batches()):
            yield {
                "stage": "maisi_diffusion",
                "output_dir": f"{self.output_dir}/maisi_diffusion",
                "inputs": {"autoencoder": f"{self.output_dir}/maisi_vae"},
                "data": self._data(batch),
                "model": {
                    "num_channels": list(widths[:levels]),
                    "attention_levels": [False] * (levels - 1) + [attended],
                    "num_head_channels": [0] * (levels - 1) + [min(32, widths[levels - 1])],
                    "num_res_blocks": 2 if on_cuda else 1,
                    "norm_num_groups": min(32, widths[0] // 2),
                    "num_class_embeds": len(self.modalities) + 1,
                    "include_spacing_input": not self.small,
                    "use_checkpointing": checkpointing,
                },
                "sampler": dict(_FLOW_SAMPLER),
                "training": _training(
                    self._steps(_STEPS[self.device][1], batch), 1e-4 if on_cuda else 5e-4, [0.9, 0.99]
                ),
            }

    def control_maskgit(self) -> Iterator[Values]:
        """Yield stage 3 of MaskGiT."""
        for common in self._controls(f"{self.output_dir}/stage2_label"):
            yield {
                **common,
                "stage": "maskgit_controlnet",
                "output_dir": f"{self.output_dir}/stage3",
                "inputs": {"transformer": f"{self.output_dir}/stage2_label"},
                "condition": {**common["condition"], "condition_type": "both"},
                "masking": dict(_MASKING),
                "sampler": {**_MASKGIT_SAMPLER, **_GUIDANCE},
            }

    def control_flow(self) -> Iterator[Values]:
        """Yield stage 3 of MAISI."""
        base = f"{self.output_dir}/maisi_diffusion"
        for checkpointing, common in product((False, True), self._controls(base)):
            yield {
                **common,
                "stage": "maisi_controlnet",
                "output_dir": f"{self.output_dir}/maisi_controlnet",
                "inputs": {"diffusion": base},
                "model": {**common["model"], "use_checkpointing": checkpointing},
                "condition": {**common["condition"], "conditions": ["mask"]},
                "sampler": dict(_FLOW_SAMPLER),
            }

    def _decoders(
        self, name: str, model: Values, *, sampler: Mapping[str, Any] | None = None, **sections: Any
    ) -> Iterator[Values]:
        """Yield stage 2 of MaskGiT with ``model``, in the run ``name``; ``sections`` are added as they are."""
        rate, steps = 2e-4 if self.device == "cuda" else 1e-3, _STEPS[self.device][1]
        for (width, blocks, heads), checkpointing, batch in product(
            _DECODERS[self.device], (False, True), self._batches()
        ):
            yield {
                "stage": "transformer",
                "output_dir": f"{self.output_dir}/{name}",
                "inputs": {"autoencoder": f"{self.output_dir}/stage1"},
                "data": self._data(batch),
                "model": {
                    "num_classes": len(self.modalities),
                    "embed_dim": width,
                    "num_blocks": blocks,
                    "num_heads": heads,
                    "groups": "per_level",
                    "coupling_channels": 128,
                    "use_checkpointing": checkpointing,
                    **model,
                },
                "masking": dict(_MASKING),
                "sampler": {**_MASKGIT_SAMPLER, **(sampler or {})},
                "training": _training(self._steps(steps, batch), rate, [0.9, 0.98]),
                **sections,
            }

    def _controls(self, base: str) -> Iterator[Values]:
        """Yield what stage 3 of both families has in common, on the stage-2 run ``base``; the widest encoder first."""
        labels = () if self.small else self.fingerprint["labels"]
        classes = 2 if self.small else 1 + max((int(label) for label in labels), default=3)
        rate, steps = 1e-4 if self.device == "cuda" else 1e-3, _STEPS[self.device][1] // 3
        for channels, batch in product(_ENCODERS[self.device], self._batches()):
            yield {
                "data": {**self._data(batch), "store_dir": f"{base}/store"},
                "model": {"channels": list(channels)},
                "condition": {"num_mask_classes": max(2, classes)},
                # A foreground is no rare lesion.
                "loss": {"region_weight": 1.0, "background_weight": 1.0} if self.small else {},
                "control": {"control_guidance_scale": 0.5},
                "training": _training(self._steps(steps, batch), rate, [0.9, 0.98]),
            }

    def _data(
        self,
        batch: int,
        *,
        cache: str = "none",
        crop: list[int] | None = None,
        augment: Mapping[str, float] | None = None,
    ) -> Values:
        """Return the section ``data``.

        Args:
            batch: volumes per batch.
            cache: where volumes are kept; MedMNIST3D has no such choice.
            crop: sides of random crops; None for whole volumes.
            augment: probabilities of changes, where there are any; what the data do not allow is left out.
        """
        dataset = self.fingerprint
        crops = {} if crop is None else {"crop_size": crop}
        loader = {"batch_size": batch, "num_workers": 4 if self.device == "cuda" else 0}
        if self.small:
            mirrored = dataset["name"] != "organmnist3d"  # whose classes tell left from right
            return {
                "kind": "medmnist3d",
                "root": dataset["root"],
                "name": dataset["name"],
                "size": dataset["size"],
                "grid": list(dataset["grid"]),
                **({"first_label": self.first_label} if self.first_label else {}),
                "augment": {**(augment or {}), "flip_prob": 0.5 if mirrored else 0.0},
                "store_flips": mirrored,
                **crops,
                **loader,
            }
        return {
            "root": dataset["root"],
            **({} if dataset["layout"] == "brats" else {"layout": dataset["layout"]}),
            "modalities": self.modalities,
            "label_map": {name: label for label, name in enumerate(self.modalities, self.first_label)},
            "split": {"train": 0.7, "val": 0.15, "test": 0.15},
            **({"spacing": dataset["spacing_mm"]} if dataset["resample"] else {}),
            "grid": list(dataset["grid"]),
            **crops,
            "cache": cache,
            **({} if augment is None else {"augment": dict(augment)}),
            **loader,
        }

    def _batches(self) -> tuple[int, ...]:
        """Return the batch sizes to try, the largest first, and none beyond the images of a tenth of the cases."""
        if self.small:
            return _SMALL_BATCHES[self.device]
        most = max(_USUAL_BATCH, self.fingerprint["cases"] * len(self.modalities) // 10)
        return tuple(batch for batch in _BATCHES[self.device] if batch <= most)

    def _steps(self, steps: int, batch: int) -> int:
        """Return the steps of a run with ``batch``, which are ``steps`` up to the usual batch."""
        return steps if self.small else steps * _USUAL_BATCH // max(_USUAL_BATCH, batch)


def _training(steps: int, rate: float, betas: list[float] | None = None) -> Values:
    """Return the section ``training``; betas: of AdamW, where they are not the default."""
    return {
        "max_steps": steps,
        "learning_rate": rate,
        "lr_schedule": {"kind": "cosine", "warmup_steps": steps // 100},
        "ema": {"decay": 0.9995 if steps > 10_000 else 0.99, "start_step": steps // 10},
        "validate_every_steps": max(1, steps // 30),
        **({} if betas is None else {"betas": betas}),
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
