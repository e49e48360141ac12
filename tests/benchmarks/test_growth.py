"""`python -m benchmarks.growth`: the table, the curves, and what is measured later."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks import growth
from benchmarks.curves import Panel, drawing
from benchmarks.race import Lane


@pytest.fixture
def docs(monkeypatch, tmp_path):
    """A page of its own, and races that take no time: seconds and memory are those of the picture's size."""

    def race(plan, tools, rounds):
        pixels = plan.size**2 * plan.batch / 1e6
        yield [Lane(tool, seconds=[k * pixels] * 3, peak_gib=k + pixels) for k, tool in enumerate(tools, 1)]

    monkeypatch.setattr(growth, "race", race)
    monkeypatch.setattr(growth, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(growth, "CURVES", tmp_path / "growth.svg")
    (tmp_path / "page.md").write_text("# Page\n")
    return tmp_path


def test_table_and_curves_are_written_and_replaced(docs, capsys):
    command = ["--json", str(docs / "cells"), "--size", "256", "--size", "512", "--batch", "4", "--write"]
    assert growth.main(command) == 0
    page = (docs / "page.md").read_text()
    assert "| 256 | 1 | 0.131 | 0.0655 | 2.00 | 2.07 | 1.07 |  |" in page and "| 512 | 4 | 2.1 | 1.05 | 2.00 |" in page
    curves = ET.parse(docs / "growth.svg").getroot()
    lines = curves.findall(".//{*}polyline")
    assert len(lines) == 8 and [len(line.get("points").split()) for line in lines] == [2, 2, 2, 2, 2, 2, 2, 2]
    assert growth.main([*command, "--minutes", "0"]) == 0  # of the cells that are kept
    assert (docs / "page.md").read_text() == page
    assert growth.main([*command, "--size", "768", "--minutes", "0"]) == 1
    assert "no time for 1 of 4 cells" in capsys.readouterr().out


def test_a_power_is_a_straight_line():
    picture = ET.fromstring(drawing([Panel("x < y", {"a": [(1, 2), (2, 8), (4, 32)], "none": []})]))
    (x1, y1), (x2, y2), (x3, y3) = (
        map(float, p.split(",")) for p in picture.find(".//{*}polyline").get("points").split()
    )
    assert abs((y2 - y1) / (x2 - x1) - (y3 - y2) / (x3 - x2)) < 0.01 and y3 < y1
