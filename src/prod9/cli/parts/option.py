"""``--part I/N``: the share of a command's work that this process does."""

from typing import Annotated

import typer

from prod9.cli import shared
from prod9.system.parts import WorkPart, parse_part, part_of_slurm

PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Do part I of N; `prod9 merge` joins them. [task of a SLURM array, else all]",
    ),
]


def chosen_part(text: str | None) -> WorkPart:
    """Return the part that ``--part`` names, or that of this task of a SLURM array, which is then printed.

    Raises ConfigError for another text, and for an array whose tasks have no clear order.
    """
    if text is not None:
        return parse_part(text)
    part = part_of_slurm()
    if not part.is_all:
        shared.messages.print(
            f"Part {part} of the work, as this task of SLURM's array has; --part 1/1 does all of it."
        )
    return part
