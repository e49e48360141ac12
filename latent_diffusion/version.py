"""The version of the package, for whatever needs it without importing the package's public names."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
