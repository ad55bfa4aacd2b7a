"""Containers that answer the interface of the BraTS challenge."""
