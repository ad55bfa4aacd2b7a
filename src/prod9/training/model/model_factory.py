"""The factory lives in :mod:`prod9.models.factory`."""

from prod9.models.factory import ModelFactory as ModelFactory
