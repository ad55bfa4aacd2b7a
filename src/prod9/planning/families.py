"""Plans of all stages of a family: what builds on stage 1, or on stage 2, with the smallest that fits last.

:mod:`prod9.planning.choose` says how one is chosen; this module adds translation or few-shot (stage 2b), control
(stage 3) and the stages of MAISI. Nothing here imports torch.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from math import prod
from typing import Any, Literal

from prod9.config.schema import (
    AutoencoderConfig,
    FSQModelConfig,
    KLModelConfig,
    MaisiDiffusionConfig,
    MaisiVAEConfig,
    RunConfig,
    TransformerConfig,
)
from prod9.planning.choose import (
    PARAMETERS_A_TOKEN,
    STEPS,
    USABLE,
    StagePlan,
    batches,
    data_section,
    decoder_candidates,
    first_fit,
    images_of,
    plan_stages,
    section,
    stage1_candidates,
    training_section,
)
from prod9.planning.control_flow import estimate_flow_controlnet
from prod9.planning.control_maskgit import estimate_controlnet
from prod9.planning.estimates import Device, Resources, context_positions, estimate, stage1_multiplications
from prod9.planning.flow import flow_multiplications

Family = Literal["maskgit", "maisi"]
_PATCHED_TOKENS = 4096
"""From so many tokens a volume on, a context of several is read 2³ tokens at a time."""
_MAISI_FACTOR = 4
_CONTROL_WORK = 2 / 3 + 0.5
"""Of a step of the base: it runs forward and hands gradients through; half of its blocks are copied and trained."""
_FLOWS: Mapping[Device, tuple[tuple[int, int, int], ...]] = {
    "cuda": ((128, 256, 512), (64, 128, 256), (32, 64, 128)),
    "cpu": ((32, 64, 64), (16, 32, 32)),
}


def plan_family(
    fingerprint: Mapping[str, Any], *, family: Family, memory_bytes: int, device: Device, output_dir: str
) -> dict[str, StagePlan]:
    """Return the plan of every stage of ``family`` that the data allow, by its name, earlier stages first.

    Stage 2b needs two modalities, or MedMNIST3D (few-shot); stage 3 segmentations, or MedMNIST3D (foregrounds).
    Arguments and errors: see :func:`~prod9.planning.choose.plan_stages`.
    """
    budget = int(USABLE * memory_bytes)
    if family == "maisi":
        return _plan_maisi(fingerprint, budget, device, output_dir)
    stage1, label = plan_stages(fingerprint, memory_bytes=memory_bytes, device=device, output_dir=output_dir)
    plans = {"stage1": stage1, "stage2_label": label}
    data, small = data_section(fingerprint), fingerprint["layout"] == "medmnist3d"
    assert isinstance(stage1.config, AutoencoderConfig)
    if small or len(data["modalities"]) > 1:
        most = PARAMETERS_A_TOKEN * 2 * images_of(fingerprint) * stage1.resources.tokens
        needs = partial(estimate, autoencoder=stage1.config.model, device=device)
        candidates = _stage2b_candidates(data, stage1.resources.tokens, device, output_dir)
        plans["stage2"] = first_fit(candidates, budget, device, needs, in_context_work, most_parameters=most)
    if small or fingerprint["segmentations"]:
        candidates = _stage3_candidates(data, fingerprint, device, output_dir)
        plans["stage3"] = _fit_control(
            candidates, budget, device, estimate_controlnet, autoencoder=stage1.config.model, on=label
        )
    return plans


def _plan_maisi(
    fingerprint: Mapping[str, Any], budget: int, device: Device, output_dir: str
) -> dict[str, StagePlan]:
    data = data_section(fingerprint, first_label=1)
    needs = partial(estimate, device=device)
    vae = first_fit(
        stage1_candidates(data, _MAISI_FACTOR, device, output_dir, kind="kl"),
        budget,
        device,
        needs,
        lambda config, _: stage1_multiplications(_as_vae(config)),
    )
    model = _as_vae(vae.config).model
    flow = first_fit(
        _flow_candidates(data, device, output_dir),
        budget,
        device,
        partial(estimate, autoencoder=model, device=device),
        lambda config, need: flow_work(config, need, model.latent_channels),
    )
    plans = {"maisi_vae": vae, "maisi_diffusion": flow}
    if fingerprint["layout"] == "medmnist3d" or fingerprint["segmentations"]:
        candidates = _flow_control_candidates(data, fingerprint, device, output_dir)
        plans["maisi_controlnet"] = _fit_control(
            candidates, budget, device, estimate_flow_controlnet, autoencoder=model, on=flow
        )
    return plans


def _fit_control(
    candidates: Iterator[dict[str, Any]],
    budget: int,
    device: Device,
    estimator: Callable[..., Resources],
    *,
    autoencoder: FSQModelConfig | KLModelConfig,
    on: StagePlan,
) -> StagePlan:
    """Return the first control network that fits; its work follows from that of the stage-2 plan it is ``on``."""
    needs = partial(estimator, base=on.config, autoencoder=autoencoder, device=device)
    work = _CONTROL_WORK * on.multiplications / on.config.data.batch_size
    return first_fit(candidates, budget, device, needs, lambda config, _: work * config.data.batch_size)


def _as_vae(config: RunConfig) -> MaisiVAEConfig:
    assert isinstance(config, MaisiVAEConfig)
    return config


def in_context_work(config: RunConfig, needs: Resources) -> float:
    """Return the multiply-adds of a step of stage 2b, with the longest context."""
    assert isinstance(config, TransformerConfig)
    targets, model = needs.positions, config.model
    context = context_positions(config, needs.latent_grid)
    attention = 2 * (targets * (targets + context) + context**2) * model.embed_dim * model.num_blocks
    return 3 * config.data.batch_size * (needs.parameters * (targets + context) + attention)


def flow_work(config: RunConfig, needs: Resources, latent_channels: int) -> float:
    """Return the multiply-adds of a step of the flow."""
    assert isinstance(config, MaisiDiffusionConfig)
    work = flow_multiplications(config.model, latent_channels=latent_channels)
    return 3 * config.data.batch_size * needs.positions * work


def _stage2b_candidates(
    data: Mapping[str, Any], tokens: int, device: Device, output_dir: str
) -> Iterator[dict[str, Any]]:
    few_shot = data.get("kind") == "medmnist3d"
    patch = 2 if tokens >= _PATCHED_TOKENS else 1
    context = {"min_sources": 0, "max_examples": 4} if few_shot else {"min_sources": 1}
    yield from decoder_candidates(
        data,
        device,
        output_dir=f"{output_dir}/stage2",
        autoencoder=f"{output_dir}/stage1",
        model={
            "kind": "single_stream",
            "patch_size": patch,
            "context_stride": 1 if patch == 2 else 2,
            "aligned": not few_shot,
        },
        context={"source": "latent", **context},
    )


def _stage3_candidates(
    data: Mapping[str, Any], fingerprint: Mapping[str, Any], device: Device, output_dir: str
) -> Iterator[dict[str, Any]]:
    base = f"{output_dir}/stage2_label"
    for common in _control_candidates(data, fingerprint, device, base=base):
        yield {
            **common,
            "stage": "maskgit_controlnet",
            "output_dir": f"{output_dir}/stage3",
            "inputs": {"transformer": base},
            "condition": {**common["condition"], "condition_type": "both"},
            "masking": {"scheduler_type": "arccos"},
            "sampler": {
                "steps": 24,
                "order": "halton",
                "guidance_scale": 1.5,
                "guidance_interval": [0.2, 1.0],
            },
        }


def _flow_control_candidates(
    data: Mapping[str, Any], fingerprint: Mapping[str, Any], device: Device, output_dir: str
) -> Iterator[dict[str, Any]]:
    base = f"{output_dir}/maisi_diffusion"
    for checkpointing in (False, True):
        for common in _control_candidates(data, fingerprint, device, base=base):
            yield {
                **common,
                "stage": "maisi_controlnet",
                "output_dir": f"{output_dir}/maisi_controlnet",
                "inputs": {"diffusion": base},
                "model": {**common["model"], "use_checkpointing": checkpointing},
                "condition": {**common["condition"], "conditions": ["mask"]},
                "sampler": {"steps": 30, "guidance_scale": 1.0},
            }


def _control_candidates(
    data: Mapping[str, Any], fingerprint: Mapping[str, Any], device: Device, *, base: str
) -> Iterator[dict[str, Any]]:
    """Yield what stage 3 of both families has in common, on the stage-2 run ``base``; the widest encoder first."""
    few = data.get("kind") == "medmnist3d"
    classes = 2 if few else 1 + max((int(label) for label in fingerprint["labels"]), default=3)
    widths = ((16, 32, 64), (8, 16, 32), (4, 8)) if device == "cuda" else ((8, 16), (4, 8))
    for channels, batch in product(widths, batches(data, device)):
        yield {
            "data": {
                **section(data, device, batch_size=batch, cache="none"),
                "store_dir": f"{base}/store",
            },
            "model": {"channels": list(channels)},
            "condition": {"num_mask_classes": max(2, classes)},
            # A foreground is no rare lesion.
            "loss": {"region_weight": 1.0, "background_weight": 1.0} if few else {},
            "control": {"control_guidance_scale": 0.5},
            "training": {
                **training_section(STEPS[device][1] // 3, 1e-4 if device == "cuda" else 1e-3),
                "betas": [0.9, 0.98],
            },
        }


def _flow_candidates(data: Mapping[str, Any], device: Device, output_dir: str) -> Iterator[dict[str, Any]]:
    steps, known = STEPS[device][1], data.get("kind") != "medmnist3d"
    # A latent must halve as often as there are resolutions after the first.
    latent = [side // _MAISI_FACTOR for side in data["grid"]]
    levels = max(depth for depth in (1, 2, 3) if all(side % 2 ** (depth - 1) == 0 for side in latent))
    attended = prod(latent) // 8 ** (levels - 1) <= _PATCHED_TOKENS
    for widths, checkpointing, batch in product(_FLOWS[device], (False, True), batches(data, device)):
        last = widths[levels - 1]
        yield {
            "stage": "maisi_diffusion",
            "output_dir": f"{output_dir}/maisi_diffusion",
            "inputs": {"autoencoder": f"{output_dir}/maisi_vae"},
            "data": section(data, device, batch_size=batch, cache="none"),
            "model": {
                "num_channels": list(widths[:levels]),
                "attention_levels": [False] * (levels - 1) + [attended],
                "num_head_channels": [0] * (levels - 1) + [min(32, last)],
                "num_res_blocks": 2 if device == "cuda" else 1,
                "norm_num_groups": min(32, widths[0] // 2),
                "num_class_embeds": len(data["modalities"]) + 1,
                "include_spacing_input": known,
                "use_checkpointing": checkpointing,
            },
            "sampler": {"steps": 30, "guidance_scale": 1.0},
            "training": {**training_section(steps, 1e-4 if device == "cuda" else 5e-4), "betas": [0.9, 0.99]},
        }
