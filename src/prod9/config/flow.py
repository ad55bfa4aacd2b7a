"""Stages 1 and 2 of MAISI: sections and roots.

Imported by :mod:`prod9.config.schema`; import the sections from there.
"""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prod9.config.autoencoders import AutoencoderSection, Stage1Config, Stage1LossSection, check_resolutions
from prod9.config.covariates import CovariatesConfig, Shape, check_covariates
from prod9.config.sections import AutoguidanceSection, InputsConfig, RunSection
from prod9.config.types import (
    Bools,
    Count,
    Fraction,
    Ints,
    NonNegative,
    Positive,
    PositiveInt,
    Range,
    Section,
)

Ints0 = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]

# -- stage 1 --------------------------------------------------------------------------------------


class KLModelConfig(AutoencoderSection):
    """AutoencoderKlMaisi."""

    kind: Literal["kl"] = Field(default="kl", description="Autoencoder family.")
    latent_channels: PositiveInt = Field(default=4, description="Channels Z of the latent.")
    num_channels: Ints = Field(default=(64, 128, 256), description="Width of each resolution.")
    norm_num_groups: PositiveInt = Field(default=32, description="Groups of the group normalisation.")


class MaisiVAELossConfig(Stage1LossSection):
    """VAEGANLoss with a KL divergence."""

    kl_weight: NonNegative = Field(
        default=1e-3,
        description="Weight of the KL divergence, a mean over latent values. MAISI weighs a sum by 1e-7: "
        "multiply by the latent values of a training crop (64³ at ×4 with 4 channels: 16,384, so 1.6e-3).",
    )
    kl_warmup_steps: Count = Field(
        default=0, description="Annealing: steps over which that weight grows from 0."
    )


class MaisiVAEConfig(Stage1Config[KLModelConfig, MaisiVAELossConfig]):
    """Stage 1, MAISI."""

    stage: Literal["maisi_vae"] = Field(default="maisi_vae", description="Stage.")
    model: KLModelConfig = Field(default=KLModelConfig(), description="Autoencoder.")
    loss: MaisiVAELossConfig = Field(default=MaisiVAELossConfig(), description="Loss.")


# -- stage 2 --------------------------------------------------------------------------------------


class RectifiedFlowModelConfig(Section):
    """DiffusionModelRF."""

    kind: Literal["rectified_flow"] = Field(default="rectified_flow", description="Picks the adapter.")
    num_channels: Ints = Field(default=(64, 128, 256, 512), description="Width of each resolution.")
    attention_levels: Bools = Field(
        default=(False, False, True, True), description="Self-attention per resolution."
    )
    num_head_channels: Ints0 = Field(
        default=(0, 0, 32, 32),
        description="Channels of an attention head per resolution; the middle uses the last.",
    )
    num_res_blocks: PositiveInt = Field(default=2, description="Residual blocks of each resolution.")
    norm_num_groups: PositiveInt = Field(default=32, description="Groups of the group normalisation.")
    resblock_updown: bool = Field(default=True, description="Residual blocks change the resolution.")
    include_fc: bool = Field(default=True, description="A linear layer after attention.")
    num_class_embeds: PositiveInt | None = Field(
        default=128, description="Class labels, of which 0 means unknown; null for none."
    )
    include_spacing_input: bool = Field(default=True, description="Condition on the spacing in mm.")
    include_top_region_index_input: bool = Field(
        default=False, description="Condition on the body region of the first slice."
    )
    include_bottom_region_index_input: bool = Field(
        default=False, description="Condition on the body region of the last slice."
    )
    num_step_sizes: PositiveInt | None = Field(
        default=None,
        description="With `distillation`: numbers of steps that it learns to sample in, of 1, 2, 4 and so on; null for "
        "a flow.",
    )
    covariates: Shape | None = Field(
        default=None,
        description="With `covariates`: how many there are, and features of each; null for none.",
    )
    use_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    native_ops: bool = Field(default=True, description="Fast operators with the same weights and results.")

    @property
    def known_steps(self) -> tuple[int, ...]:
        """The numbers of steps that it samples in; none for a flow, which takes any."""
        return tuple(2**k for k in range(self.num_step_sizes or 0))

    @property
    def downsampling_factor(self) -> int:
        """The sides of a latent are multiples of this."""
        return 2 ** (len(self.num_channels) - 1)

    @model_validator(mode="after")
    def _resolutions_agree(self) -> Self:
        check_resolutions(self, "attention_levels", "num_head_channels")
        for i, (width, head) in enumerate(zip(self.num_channels, self.num_head_channels, strict=True)):
            used = self.attention_levels[i] or i == len(self.num_channels) - 1
            if used and (head < 1 or width % head):
                raise ValueError(
                    f"num_head_channels[{i}]: expected a divisor of num_channels[{i}] ({width}), got {head}; "
                    f"use {math.gcd(width, 32)}"
                )
        return self


class FlowConfig(Section):
    """RectifiedFlowSchedulerRF."""

    num_train_timesteps: PositiveInt = Field(
        default=1000, description="The time step that the network reads at t = 1."
    )
    sample_method: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="Distribution of the training times."
    )
    logit_mean: float = Field(default=0.0, description="`logit_normal`: mean of logit t.")
    logit_std: Positive = Field(default=1.0, description="`logit_normal`: its deviation.")
    use_timestep_transform: bool = Field(
        default=False, description="Shift times towards noise for latents larger than `base_size`."
    )
    transform_scale: Positive = Field(default=1.0, description="Factor of that shift.")
    base_size: PositiveInt = Field(default=32**3, description="Latent voxels that are not shifted.")


class RectifiedFlowSamplerConfig(AutoguidanceSection):
    """RectifiedFlowSampler."""

    steps: PositiveInt = Field(default=30, description="Steps from noise to data; 10 to 30 are enough.")
    solver: Literal["euler", "heun"] = Field(
        default="euler", description="`heun` evaluates the network twice per step; its error is of order 2."
    )
    guidance_scale: NonNegative = Field(
        default=0.0, description="Classifier-free guidance; 0 runs no second branch (MAISI's scale minus 1)."
    )
    guidance_interval: Range = Field(
        default=(0.0, 1.0), description="Share of the steps [from, to) that is guided."
    )


class DistillationConfig(Section):
    """DistillationTrainer: the run of `--init-from` is the teacher, and its weights are the first of the student."""

    kind: Literal["shortcut"] = Field(
        default="shortcut",
        description="The mean velocity over a step is the teacher's for the shortest step, else that of two of the "
        "student's steps of half the length.",
    )
    teacher: RectifiedFlowSamplerConfig | None = Field(
        default=None,
        description="How the teacher is sampled; its guidance becomes part of the student. Null: as its file says.",
    )

    @model_validator(mode="after")
    def _teacher_is_alone(self) -> Self:
        if self.teacher is not None and self.teacher.autoguidance_scale != 0.0:
            raise ValueError(
                "teacher.autoguidance_scale: expected 0, since a teacher is one network, without a weaker one, got "
                f"{self.teacher.autoguidance_scale:g}; set it to 0"
            )
        return self


class DiffusionLossConfig(Section):
    """DiffusionTrainer."""

    distance: Literal["l2", "l1"] = Field(
        default="l2", description="Between predicted and true velocity; MAISI's code uses `l1`."
    )
    condition_dropout: Fraction = Field(
        default=0.1, description="Share of samples trained with label 0, unknown (guidance)."
    )
    covariate_dropout: Fraction = Field(
        default=0.3, description="With `covariates`: share of them, each by itself, hidden in training."
    )


class MaisiDiffusionConfig(RunSection):
    """Stage 2, MAISI."""

    data_kinds: ClassVar[tuple[str, ...]] = ("brats", "medmnist3d")
    can_shard: ClassVar[bool] = True

    stage: Literal["maisi_diffusion"] = Field(default="maisi_diffusion", description="Stage.")
    inputs: InputsConfig = Field(default=InputsConfig(), description="Earlier stages.")
    model: RectifiedFlowModelConfig = Field(default=RectifiedFlowModelConfig(), description="U-Net.")
    loss: DiffusionLossConfig = Field(default=DiffusionLossConfig(), description="Loss.")
    flow: FlowConfig = Field(default=FlowConfig(), description="Flow.")
    sampler: RectifiedFlowSamplerConfig = Field(default=RectifiedFlowSamplerConfig(), description="Sampler.")
    distillation: DistillationConfig | None = Field(
        default=None, description="Distil a trained flow to a few steps; null trains a flow."
    )
    covariates: CovariatesConfig | None = Field(
        default=None, description="What is known of patients, as a condition beside the label; null for none."
    )

    @model_validator(mode="after")
    def _covariates_fit(self) -> Self:
        check_covariates(self.covariates, self.model, data=self.data)
        if self.covariates is not None and self.distillation is not None:
            raise ValueError(
                "covariates: expected none with distillation, whose teacher is asked without them, got some; "
                "remove them"
            )
        return self

    @model_validator(mode="after")
    def _student_is_whole(self) -> Self:
        sampler, known = self.sampler, self.model.known_steps
        if (self.distillation is None) != (not known):
            raise ValueError(
                "model.num_step_sizes: expected a number with distillation and null without, got "
                f"{self.model.num_step_sizes} {'without' if self.distillation is None else 'with'} it; use "
                f"{'null' if self.distillation is None else '3, for 1, 2 and 4 steps'}"
            )
        if known and sampler.steps not in known:
            raise ValueError(
                f"sampler.steps: expected {_either(known)}, the numbers of steps that this network is distilled to, "
                f"got {sampler.steps}; use one of these, or sample its teacher"
            )
        if known and sampler.guidance_scale != 0.0:
            raise ValueError(
                "sampler.guidance_scale: expected 0 for a distilled network, whose teacher's guidance is part of it, "
                f"got {sampler.guidance_scale:g}; set it to 0"
            )
        if known and sampler.solver != "euler":
            raise ValueError(
                "sampler.solver: expected euler for a distilled network, which predicts the mean velocity of a whole "
                f"step, got {sampler.solver}; use euler"
            )
        if known and self.loss.condition_dropout > 0:
            raise ValueError(
                "loss.condition_dropout: expected 0 with distillation, which learns the teacher's guided velocity and "
                f"hides no label, got {self.loss.condition_dropout:g}; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        count = self.model.num_class_embeds
        labels = {name: self.data.label_map[name] for name in self.data.modalities}
        if count is not None and not all(0 < label < count for label in labels.values()):
            if self.data.kind == "medmnist3d":
                raise ValueError(
                    f"data.first_label: expected 1, since 0 means unknown here, and model.num_class_embeds above "
                    f"{len(labels)}, the classes of {self.data.name}; got {self.data.first_label} and {count}"
                )
            raise ValueError(
                f"data.label_map: expected labels from 1 to model.num_class_embeds - 1 ({count - 1}), since 0 "
                f"means unknown here, got {labels}; use {dict(zip(labels, range(1, len(labels) + 1), strict=True))}"
            )
        return self

    @model_validator(mode="after")
    def _layout_can_be_sharded(self) -> Self:
        if self.trainer.strategy == "fsdp" and self.training.channels_last:
            raise ValueError(
                "training.channels_last: expected false with trainer.strategy fsdp, which slices contiguous weights "
                "only, got true; set it to false, or use ddp"
            )
        return self


def _either(numbers: tuple[int, ...]) -> str:
    return " or ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
