"""The model as `from_pretrained` loads it without this package: torch and transformers only.

Every mixture's folder holds a copy of these modules, so they import nothing else, and each other
relatively.
"""
