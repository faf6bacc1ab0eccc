"""What is wrong with somebody's text."""


class PrepareError(ValueError):
    """The text cannot be prepared; the message names the domain or source, and the numbers."""
