"""Experts that were trained apart become one heterogeneous mixture of experts."""
