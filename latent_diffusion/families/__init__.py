"""Model families as pure data: values only, found by name."""

__all__ = ["FAMILIES"]

FAMILIES = __name__
