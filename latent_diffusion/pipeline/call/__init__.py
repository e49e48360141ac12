"""The arguments of a call: their types, checks, defaults and text forms."""
