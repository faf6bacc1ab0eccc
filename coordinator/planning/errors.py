"""What a plan can be refused for."""


class PlanError(ValueError):
    """The plan cannot be made; the message holds the numbers."""
