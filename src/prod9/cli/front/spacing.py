"""``--spacing``: the size of a voxel in mm, one number for cubes or three."""

import typer

SPACING = "MM|X,Y,Z"
SIDES = (1.0, 8.0)
"""Sides of voxels that a brain can be simulated with, in mm."""


def checked_spacing(value: str | None) -> str | None:
    """Refuse (usage error) what is no size of a voxel."""
    spacing_of(value)
    return value


def checked_side(value: str) -> str:
    """Refuse (usage error) what is no side of a cube that brains are simulated with."""
    side_of(value)
    return value


def spacing_of(text: str | None) -> tuple[float, float, float] | None:
    """Return the three sizes of ``3.75`` or ``1,1,2.5``; None for None."""
    if text is None:
        return None
    try:
        sizes = [float(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or not all(0 < size < 1e3 for size in sizes):
        raise typer.BadParameter(f"expected millimetres such as 3.75, or three as in 1,1,2.5, got {text!r}")
    x, y, z = sizes if len(sizes) == 3 else sizes * 3
    return x, y, z


def side_of(text: str, *, sides: tuple[float, float] = SIDES) -> float:
    """Return the side of a cube within ``sides``."""
    sizes = spacing_of(text)
    lowest, highest = sides
    if sizes is None or len(set(sizes)) > 1 or not lowest <= sizes[0] <= highest:
        raise typer.BadParameter(
            f"expected the side of a cube from {lowest:g} to {highest:g} mm, got {text!r}; choose one"
        )
    return sizes[0]
