"""The rows of `bench_gpu.py` as a Markdown table."""

from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| row | TFLOP | floor s | eager s | compiled s | ours s | eager/ours | compiled/ours | of floor | note |"]
    lines.append("|" + "---|" * 10)
    for row in rows:
        best = "max_autotune" if "max_autotune_s" in row else "compiled"
        keys = ("tflop", "floor_s", "eager_s", f"{best}_s", "ours_s", "eager/ours", f"{best}/ours", "of_floor")
        known = {"row", "took_s", "note", "skipped", "spread", *keys}
        rest = ", ".join(f"{key} {value}" for key, value in row.items() if key not in known)
        note = "skipped: " + row["skipped"] if "skipped" in row else "; ".join(filter(None, (row.get("note"), rest)))
        lines.append(f"| {row['row']} | " + " | ".join(str(row.get(key, "")) for key in keys) + f" | {note} |")
    return "\n".join(lines)
