"""Data modules live in :mod:`prod9.training.data`."""

from prod9.training.data.brats import BraTSDataModule as BraTSDataModule
