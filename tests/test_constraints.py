"""constraints.txt: a release for everything that is installed, in the ranges of pyproject.toml, and none for torch."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(name): release for name, release in (line.split("==") for line in LINES)}
MACHINE = {"torch", "xformers"}  # which build fits is a matter of the machine
LISTS = (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
NEEDED = sorted({line for lines in LISTS for line in lines if not line.startswith("latent_diffusion")})


@pytest.mark.parametrize("line", NEEDED)
def test_a_range_has_two_ends_and_holds_the_tested_release(line):
    needed = Requirement(line)
    assert {part.operator for part in needed.specifier} == {">=", "<"}
    if needed.name not in MACHINE:
        assert needed.specifier.contains(PINS[canonicalize_name(needed.name)])


def test_what_is_a_matter_of_the_machine_is_not_pinned():
    assert not [name for name in PINS if re.match(r"torch|triton|nvidia|cuda|xformers", name)]
