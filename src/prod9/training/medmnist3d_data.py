"""Data modules live in :mod:`prod9.training.data`."""

from prod9.training.data.medmnist3d import MedMNIST3DDataModule as MedMNIST3DDataModule
