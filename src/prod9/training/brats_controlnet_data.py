"""Data modules live in :mod:`prod9.training.data`."""

from prod9.training.data.control import BraTSControlNetDataModule as BraTSControlNetDataModule
