"""The schemas live in :mod:`prod9.config.schema`."""

from prod9.config.schema import RunConfig as RunConfig
