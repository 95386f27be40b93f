"""Errors, typed by culprit. A message says what went wrong, where (id, file:line, key) and what would be right."""


class VisloopError(Exception):
    """Base of every error the project raises on purpose."""


class ConfigError(VisloopError):
    """A value in the configuration is missing, unknown or out of range."""


class DataError(VisloopError):
    """A file or record on disk is missing, corrupt or breaks its contract."""


class ModelError(VisloopError):
    """A model could not be loaded, reached or run."""


class ReplyError(VisloopError):
    """A model answered, but its reply cannot be read."""


class TrainingError(VisloopError):
    """A training run cannot start or gave an unusable result."""


class GateError(DataError):
    """A data gate between two stages refused records."""


class ProgramError(VisloopError):
    """A visual program is malformed or fails while it is interpreted."""


class ToolError(VisloopError):
    """A visual tool failed on valid arguments."""
