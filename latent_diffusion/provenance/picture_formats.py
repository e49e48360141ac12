"""The files that pictures are written to, by the endings of their names."""

__all__ = ["LOSSY", "SUFFIXES"]

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LOSSY = (".jpg", ".jpeg")  # WebP is written without loss
