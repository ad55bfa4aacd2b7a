"""What the header of a checkpoint says of a network that was distilled to a few steps."""

from pathlib import Path

from prod9.errors import CheckpointError
from prod9.models.checkpoint_header import Header

DISTILLED = "distilled"
"""Key of the header's ``data``: ``steps`` that the network knows, its ``teacher`` by place and SHA-256, and the
``sampler`` of the teacher, whose guidance is part of the network."""


def require_flow(header: Header, source: str | Path) -> None:
    """Refuse (CheckpointError) a distilled network where the velocities of a flow are needed."""
    record = header["data"].get(DISTILLED)
    if record is not None:
        steps = ", ".join(map(str, record["steps"]))
        raise CheckpointError(
            f"{source}: expected a flow, got a network that was distilled to {steps} steps, which predicts mean "
            f"velocities of whole steps; use its teacher (SHA-256 {record['teacher']['sha256'][:12]}…)."
        )
