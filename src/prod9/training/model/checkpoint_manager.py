"""Checkpoints live in :mod:`prod9.models`."""

from prod9.models.checkpoint_manager import CheckpointManager as CheckpointManager
