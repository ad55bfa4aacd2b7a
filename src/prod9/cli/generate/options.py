"""The flags of the sampler of masked tokens, for every command that has them."""

from typing import Annotated, Any

import typer

StepsOption = Annotated[int | None, typer.Option("--steps", help="Decoding steps.")]
TemperatureOption = Annotated[float | None, typer.Option("--temperature", help="Of the drawn tokens.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Draw from the likeliest that hold this share; 1 for all.")
]
OrderOption = Annotated[
    str | None, typer.Option("--order", metavar="confidence|halton|random", help="Which tokens first.")
]
GuidanceScaleOption = Annotated[
    float | None, typer.Option("--guidance-scale", help="Classifier-free guidance; 0 for none.")
]
GuidanceScheduleOption = Annotated[
    str | None,
    typer.Option("--guidance-schedule", metavar="constant|linear|cosine", help="How guidance grows."),
]
RemaskingOption = Annotated[
    float | None, typer.Option("--remasking", help="How much of what was drawn is drawn anew; 0 for none.")
]


def sampler_changes(overrides: list[str] | None, **flags: Any) -> list[Any]:
    """Return the changes to a config that a command line asks for: ``KEY=VALUE``, or pairs.

    flags: fields of the sampler; None where one is not given.
    """
    given = ((f"sampler.{name}", value) for name, value in flags.items() if value is not None)
    return [*(overrides or []), *given]
