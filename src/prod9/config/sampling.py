"""The sections that everything sampling masked tokens shares: the schedule and the sampler."""

from typing import Annotated, Literal

from pydantic import Field

from prod9.config.sections import Fraction, NonNegative, Positive, PositiveInt, Range, Section

SchedulerType = Literal["log", "log2", "linear", "sqrt", "cosine", "arccos"]


class MaskingConfig(Section):
    """MaskGiTScheduler, of training, and of sampling unless ``sampler.scheduler`` says otherwise."""

    scheduler_type: SchedulerType = Field(default="log", description="Share of hidden tokens over time.")


class SamplerConfig(Section):
    """MaskGiTSampler."""

    scheduler: SchedulerType | None = Field(
        default=None, description="Share of hidden tokens over the steps; null: that of `masking`."
    )
    steps: PositiveInt = Field(default=12, description="Decoding steps.")
    order: Literal["confidence", "halton", "random"] = Field(
        default="confidence", description="Which tokens first."
    )
    temperature: Positive = Field(default=1.0, description="Softmax temperature of the drawn tokens.")
    gumbel_temperature: NonNegative = Field(
        default=4.5, description="`confidence`: annealed Gumbel noise on the ranking."
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="Nucleus; 1 keeps every token."
    )
    guidance_scale: NonNegative = Field(
        default=0.0, description="Classifier-free guidance; 0 runs no second branch."
    )
    guidance_interval: Range = Field(
        default=(0.0, 1.0), description="Share of the steps [from, to) that is guided."
    )
    guidance_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How guidance grows over its interval."
    )
    remasking: Fraction = Field(
        default=0.0, description="η of ReMDM: how much of what was drawn each step draws anew; 0 for none."
    )
