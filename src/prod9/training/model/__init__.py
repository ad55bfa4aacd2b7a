"""Networks and checkpoints live in :mod:`prod9.models`."""
