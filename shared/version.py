"""The version of this software, as installed."""

from importlib.metadata import version

SOFTWARE_VERSION = version("hdee")
