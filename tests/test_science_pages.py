"""docs/science/: every page names code, tests and pictures that exist, is in the index, and has a command."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "science"
PAGES = sorted(page.stem for page in FOLDER.glob("*.md") if page.stem != "README")
MOST_BYTES = 60_000


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(source_of, page):
    text = (FOLDER / f"{page}.md").read_text()
    quoted = re.findall(r"^- Code: `([\w/]+\.py)::([\w.]+)`, `(.+)`$", text, re.MULTILINE)
    assert quoted and len(quoted) == text.count("- Code: ") and "- Proof: `" in text
    for file, name in re.findall(r"`([\w/]+\.py)::([\w.]+)`", text):
        assert source_of(file, name)
    for file, name, line in quoted:
        assert line in " ".join(source_of(file, name).split()), line
    for module in re.findall(r"python -m (experiments\.[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for config in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (ROOT / config).exists(), config
    assert "minute" in text


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_there_and_small(page):
    for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (FOLDER / f"{page}.md").read_text()):
        assert (FOLDER / name).stat().st_size <= MOST_BYTES, name


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_in_the_index_and_has_a_command(page):
    assert f"]({page}.md)" in (FOLDER / "README.md").read_text()
    script = (ROOT / "scripts" / "science.sh").read_text()
    assert re.search(rf"^{page}\(\) \{{", script, re.MULTILINE) and re.search(
        rf"^pages=\(.*\b{page}\b", script, re.MULTILINE
    )


def test_no_file_is_left_over():
    text = "".join((FOLDER / f"{page}.md").read_text() for page in PAGES)
    assert not [f.name for f in FOLDER.iterdir() if f.suffix != ".md" and f"({f.name})" not in text]
