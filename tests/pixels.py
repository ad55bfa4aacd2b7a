"""A picture that costs nothing: validations of tiny runs would spend as long on drawing as on the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# One black pixel.
_PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200"
    "0148afa4710000000049454e44ae426082"
)


def write_pixel(path: Path, rows: Sequence[Sequence[Any]], **_: Any) -> None:
    """Take the place of ``prod9.measures.montage.write_montage``."""
    assert rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_PICTURE)
