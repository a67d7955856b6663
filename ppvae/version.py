"""The version of this library, which every run records."""

__version__ = "0.1.0"
