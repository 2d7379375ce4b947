"""The one exception that a user should ever read."""


class InputError(ValueError):
    """The input cannot be used. The message says in one sentence what came, what was needed and which file."""
