"""Seats: one device of a worker, as the scheduler counts it. Pure.

What a worker is trusted with, excluded from and credited for concerns all of its devices; what it
does now, how fast, and with how much memory concerns one.
"""


def seat_of(worker: str, device_number: int) -> str:
    """The name of a seat; that of a worker's first device is the worker's own id."""
    return worker if device_number == 0 else f"{worker}#{device_number}"
