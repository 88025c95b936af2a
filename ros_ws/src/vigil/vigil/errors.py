"""The one error that a person is meant to read."""


class VigilError(Exception):
    """What went wrong, what is allowed, and what to do; shown as one line, without a traceback."""
