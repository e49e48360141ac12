"""The layers of docs/architecture.md: a file imports only from lower rows, or from its own folder.

No circle of imports is allowed anywhere. Imports inside functions and those for type checkers count, since a reader
follows them too.
"""

import ast
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "latent_diffusion"
ROWS = [
    {"errors", "registry", "checks", "version", "config", "conditioning", "randomness"},
    {"nn", "diffusion"},
    {"models", "samplers", "guidance", "schedules", "options"},
    {"families"},
    {"checkpoint", "data", "runtime"},
    {"approximations", "adapters", "prompts", "inpainting"},
    {"provenance"},
    {"pipeline", "training"},
    {"evaluation"},
    {"train"},
    {"server"},
    {"cli", "__init__"},
    {"__main__"},
]
# Row 1 holds plain words everyone uses; these may be imported inside row 1 too.
FOUNDATION = {"errors", "registry", "conditioning", "version"}
REST = "*"  # every file of the folder that its rows do not name
INNER = {
    "checkpoint": [{"files"}, {"prompt_forms"}, {"components"}, {"folder"}, {"single"}, {REST}],
    "cli": [{"output"}, {REST}, {"commands"}, {"main"}],
    "data": [
        {REST},
        {"pictures"},
        {"settings"},
        {"rows"},
        {"sources"},
        {"composed"},
        {"buckets", "tensor_cache"},
        {"opening"},
        {"checks"},
        {"batches"},
    ],
    "evaluation": [{REST}, {"composition"}, {"report_file"}],
    "pipeline": [{"call"}, {"engine"}, {"tasks"}, {REST}],
    "runtime": [{"agreement"}, {"cpu", "cuda"}, {REST}],
    "server": [{REST}, {"drawing"}, {"events"}, {"a1111", "native", "openai", "training"}, {"app"}],
    "training": [
        {REST},
        {"networks"},
        {"losses"},
        {"state"},
        {"monitoring"},
        {"adapters"},
        {"objectives"},
        {"plan"},
        {"run"},
        {"doctor"},
        {"doctor_page"},
    ],
}
"""Rows inside a folder that has folders, lowest first."""
MOST_FILES = {"data": 10, "pipeline": 12, "server": 10, "training": 13}
"""Most files of each flat folder in a part of the package."""
REGISTRY = PACKAGE / "training" / "objectives"
"""A folder that is a list of names, which grows by one file for each and has no count."""
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of the package that `module` imports anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    ours = {name for name in found if name.split(".")[0] == PACKAGE.name and name != module}
    assert ours <= set(MODULES), f"{module} imports {', '.join(sorted(ours - set(MODULES)))}, which does not exist"
    return frozenset(ours)


def row_of(name: str, rows: list[set[str]]) -> int | None:
    """Place of the row that holds `name`, counted from 0 at the bottom, or of the rest."""
    rest = next((place for place, row in enumerate(rows) if REST in row), None)
    return next((place for place, row in enumerate(rows) if name in row), rest)


def test_imports_only_lower_rows():
    wrong = []
    for module in MODULES:
        part = module.split(".")[1] if "." in module else "__init__"
        if row_of(part, ROWS) is None:
            wrong.append(f"{module}: no row")
        for other in sorted(imports(module)):
            target = other.split(".")[1] if "." in other else "__init__"
            if target == part or target in FOUNDATION or part == "__init__":
                continue
            low, high = row_of(target, ROWS), row_of(part, ROWS)
            if low is None or high is None or low >= high:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_imports_only_lower_rows_inside_a_folder():
    wrong = []
    for module in MODULES:
        part, *inner = module.split(".")[1:] or ["__init__"]
        rows = INNER.get(part)
        if not inner:
            continue
        if rows is None:
            if len(inner) > 1:
                wrong.append(f"{module}: {part}/ has folders, but no rows of them")
            continue
        for other in sorted(imports(module)):
            target = other.split(".")[1:]
            if target[:1] != [part] or len(target) < 2 or target[1] == inner[0]:
                continue
            low, high = row_of(target[1], rows), row_of(inner[0], rows)
            rest = low == high and REST in rows[low or 0] and not {target[1], inner[0]} & rows[low or 0]
            if low is None or high is None or low > high or (low == high and not rest):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    """A module is reached from itself by no chain of imports, those for type checkers counted."""
    circles = sorted(
        ", ".join(sorted(circle)) for circle in circles_of({module: imports(module) for module in MODULES})
    )
    assert not circles, "\n".join(circles)


def circles_of(graph: dict[str, frozenset[str]]) -> Iterator[set[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[set[str]]:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                yield from visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            circle = set(stack[place:])
            del stack[place:]
            if len(circle) > 1:
                yield circle

    for module in graph:
        if module not in number:
            yield from visit(module)


def test_a_circle_is_found():
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("bd"), "d": frozenset()}
    assert list(circles_of(graph)) == [{"b", "c"}]


def test_folders_and_files_stay_small():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    wrong = [f"{path}: {count} lines, it holds a second idea" for path, count in lines.items() if count > 400]
    for part, most in MOST_FILES.items():
        for folder in {path.parent for path in FILES if (PACKAGE / part) in path.parents} - {REGISTRY}:
            count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
            if count > most:
                wrong.append(f"{folder}: {count} files; at most {most}")
    assert not wrong, "\n".join(wrong)


def test_names_say_something_once():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "types"}
    wrong = [str(path) for path in FILES if path.stem in empty]
    named = [path.relative_to(PACKAGE) for path in FILES if path.name != "__init__.py"]
    for one, other in combinations(named, 2):
        a, b = one.parent, other.parent
        if one.name == other.name and (a.parent == b.parent or a.parent == b or b.parent == a):
            wrong.append(f"{one} and {other}: one name in neighbouring folders")
    assert not wrong, "\n".join(wrong)
