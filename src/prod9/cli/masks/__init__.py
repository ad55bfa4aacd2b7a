"""Masks that a model draws, for the commands that make or follow them."""
