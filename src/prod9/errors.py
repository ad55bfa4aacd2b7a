"""Errors a user can act on.

Commands print these as one message and exit with ``exit_code``; other exceptions are reported as bugs.
Every message has the form "KEY: expected …, got …; remedy", where KEY is a file or a dotted config key.
Networks and algorithms, which have no access to files and configs, raise plain ``ValueError``.
"""


class Prod9Error(Exception):
    """Base of the errors that a command turns into one message."""

    exit_code = 1


class ConfigError(Prod9Error, ValueError):
    """The command line or the configuration is wrong: exit code 2."""

    exit_code = 2


class DataError(Prod9Error, ValueError):
    """A file or a folder of data cannot be used."""


class CheckpointError(Prod9Error, RuntimeError):
    """A checkpoint is missing, damaged, of the wrong stage, or does not fit."""


class MissingDependencyError(Prod9Error, ImportError):
    """An optional dependency is not installed; the message holds the install command."""


class TrainingError(Prod9Error, RuntimeError):
    """Training had to stop: for example too many steps with a non-finite loss."""
