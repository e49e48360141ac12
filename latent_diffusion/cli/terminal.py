"""Untrusted text on a terminal: prompts and names come from files, and a control character in them could steer it."""

__all__ = ["harmless"]


def harmless(text: str, *, lines: bool = False) -> str:
    """Return `text` with what cannot be printed written out by its number; `lines` keeps line breaks."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)
