"""Who gets which open assignment: an index that is kept up to date, and pure decisions over it.

`values` what goes in and comes out; `requirements` what a worker must have; `shelves` open work by
requirements and size; `roster` the workers; `underway` the work in progress; `pace` the time by
which everything fits; `scene` what a decision looks at; `choice` one decision, `reasons` its words,
`why` the account of it; `index` ties them together.
"""

from coordinator.scheduling.index import Index
from coordinator.scheduling.requirements import find_obstacle
from coordinator.scheduling.values import (
    Backup,
    Candidate,
    Choice,
    NoWork,
    Obstacle,
    Running,
    Verdict,
    Work,
)

__all__ = [
    "Backup",
    "Candidate",
    "Choice",
    "Index",
    "NoWork",
    "Obstacle",
    "Running",
    "Verdict",
    "Work",
    "find_obstacle",
]
