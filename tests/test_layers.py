"""The layers of docs/architecture.md: a file imports only from lower rows, or from its own folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "latent_diffusion"
ROWS = [
    {"errors", "registry", "checks", "version", "config", "conditioning", "randomness"},
    {"nn", "diffusion"},
    {"models", "samplers", "guidance", "schedules"},
    {"families", "approximations"},
    {"checkpoint", "data", "runtime"},
    {"adapters", "prompts", "inpainting"},
    {"provenance"},
    {"pipeline", "training"},
    {"evaluation"},
    {"train"},
    {"cli", "serving", "__init__"},
    {"__main__"},
]
# Row 1 holds plain words everyone uses; these three may be imported inside row 1 too.
FOUNDATION = {"errors", "registry", "conditioning"}
FILES = sorted(PACKAGE.rglob("*.py"))


def row_of(part: str) -> int:
    return next(index for index, row in enumerate(ROWS) if part in row)


def part_of(path: Path) -> str:
    """First component below the package: a folder or a top-level file."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [node.module]
            if node.module == "latent_diffusion":
                modules = [f"latent_diffusion.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in modules if name.startswith("latent_diffusion.")}
    return parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_lower_rows(path):
    part = part_of(path)
    for other in imported_parts(path) - {part} - FOUNDATION:
        known = any(other in row for row in ROWS)
        assert known or part == "__init__", f"{path} imports latent_diffusion.{other}, which has no row"
        if known and part != "__init__":
            assert row_of(other) < row_of(part), f"{path}: {part} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{path} has {lines} lines: it holds a second idea"


def test_no_names_that_say_nothing():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "types"}
    assert not [path for path in FILES if path.stem in empty]
