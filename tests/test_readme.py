"""README.md counts and lists what the package has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PACKAGE = ROOT / "latent_diffusion"
NUMBERS = {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14}


@pytest.mark.parametrize(("folder", "what"), [("samplers", "samplers"), ("guidance", "guidance methods")])
def test_counts_are_those_of_the_files(folder: str, what: str) -> None:
    files = [file for file in (PACKAGE / folder).glob("*.py") if file.stem != "__init__"]
    found = re.findall(rf"(\w+) {what}\b", README)
    counts = {NUMBERS.get(word, word) for word in found if word in NUMBERS or word.isdigit()}
    assert {int(count) for count in counts} == {len(files)}


def test_every_folder_of_the_package_has_its_line() -> None:
    listed = set(re.findall(r"^  (\w+)/ {2,}", README, re.M))
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")} - {"bundled"}
    assert folders <= listed, folders - listed


def test_every_page_and_config_that_it_names_is_there() -> None:
    named = set(re.findall(r"(?<![\w/])((?:docs|configs|scripts|assets|latent_diffusion)/[\w./-]+\.\w+)", README))
    assert len(named) > 10
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert not missing
