"""docs/reliability.md: every row of the catalogue has one line, every test it names is there, the count is right."""

import ast
import re
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
SECTIONS = {"D": 32, "C": 11, "W": 20, "T": 24, "G": 15, "I": 10, "N": 10}
OF_A_SERVER = {"H15"}  # the one row of that section that a library has too
ABSENT = {"I08"}  # pictures as text inside JSON, which nothing here takes
ROW = re.compile(r"^\| ([DCWTGINH]\d\d) \| (.+?) \| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+)::(\w+)`")


def rows() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return row, fault, and the tests named for it, each as file and function."""
    return [(row, fault, NAMED.findall(tests)) for row, fault, tests in ROW.findall(PAGE.read_text("utf-8"))]


def test_every_row_has_one_line():
    every = {f"{letter}{k:02}" for letter, count in SECTIONS.items() for k in range(1, count + 1)}
    wanted = (every - ABSENT) | OF_A_SERVER
    found = Counter(row for row, _, _ in rows())
    assert set(found) == wanted and max(found.values()) == 1


def test_every_test_that_is_named_is_there():
    functions: dict[str, set[str]] = {}
    for _, _, named in rows():
        for file, name in named:
            if file not in functions:
                tree = ast.parse((TESTS / f"{file}.py").read_text("utf-8"))
                functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in functions[file], f"{file}.py has no {name}"


def test_the_page_counts_the_rows_that_have_a_test():
    found = rows()
    covered = sum(bool(named) for _, _, named in found)
    assert f"{covered} of {len(found)} rows" in PAGE.read_text("utf-8")
