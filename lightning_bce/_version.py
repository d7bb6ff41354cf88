"""The version, where the build reads it without importing torch."""

__version__ = "1.0.0"
