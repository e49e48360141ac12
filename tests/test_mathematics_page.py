"""docs/mathematics.md names code and tests: each of them exists, and each quoted line is in the function named."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "mathematics.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))
QUOTED = re.findall(r"^- Code: `([\w/]+\.py)::([\w.]+)`, `(.+)`$", PAGE, re.MULTILINE)
FILES = sorted(set(re.findall(r"`((?:latent_diffusion|tests|docs|scripts)/[\w/]+\.\w+)", PAGE)))


@pytest.mark.parametrize("file,name", NAMED)
def test_what_the_page_names_exists(source_of, file, name):
    assert source_of(file, name)


@pytest.mark.parametrize("file,name,line", QUOTED)
def test_quoted_lines_are_there(source_of, file, name, line):
    assert line in " ".join(source_of(file, name).split())


def test_files_exist():
    assert [file for file in FILES if not (ROOT / file).exists()] == []


def test_every_section_has_code_and_proof():
    sections = re.split(r"^## (?=\d+\. )", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == 12
    for section in sections:
        assert "- Code: `" in section and "- Proof: `" in section, section.splitlines()[0]


def test_every_code_line_is_read():
    assert len(QUOTED) == PAGE.count("- Code: ")
