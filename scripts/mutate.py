"""Measure the power of the tests: change the code in random places and count the changes that a test notices.

    python scripts/mutate.py --seed 1 --count 20            # 4 changes in each of five areas
    python scripts/mutate.py --seed 7 --area guidance --count 10

Each change is one operator, comparison or number of one file, in a temporary copy of the tracked files. The tests of
its area then run until the first failure. A change that no test notices is printed in full: it is either a gap in the
tests or a change without effect. The exit code is 1 if any change was missed.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
AREAS = {  # area: (files that are changed, tests that must notice)
    "samplers": (
        ["samplers/*.py"],
        ["tests/golden", "tests/contract/test_sampler_law.py", "tests/contract/test_samplers.py", "tests/parity"],
    ),
    "levels": (
        ["diffusion/*spacing.py", "diffusion/path.py", "diffusion/discrete_vp.py", "schedules/*.py"],
        ["tests/golden", "tests/contract/test_schedules.py", "tests/schedules", "tests/diffusion", "tests/parity"],
    ),
    "guidance": (
        ["guidance/*.py", "diffusion/guidance.py"],
        ["tests/contract/test_guidance.py", "tests/guidance", "tests/pipeline", "tests/cli"],
    ),
    "masks": (
        ["inpainting/*.py", "diffusion/known.py", "diffusion/resample.py"],
        ["tests/inpainting", "tests/contract/test_inpainting.py", "tests/diffusion", "tests/pipeline", "tests/parity"],
    ),
    "checkpoints": (
        ["checkpoint/*.py", "checkpoint/*/*.py"],
        [
            "tests/checkpoint",
            "tests/models",
            "tests/faults",
            "tests/cli",
            "tests/pipeline",
            "tests/training",
            "tests/parity",
        ],
    ),
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
CONNECTIVES = {ast.And: ast.Or, ast.Or: ast.And}


def places(tree: ast.Module) -> list[ast.AST]:
    """Return the nodes that can be changed: none in annotations, error messages, docstrings or class bodies' types."""
    left_out = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.Raise | ast.JoinedStr):
            parts = [node]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            parts = [node.returns, *(argument.annotation for argument in arguments)]
        elif isinstance(node, ast.Assign | ast.Call) and named(node) in ("__all__", "warn"):
            parts = [node]
        left_out |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    return [node for node in ast.walk(tree) if id(node) not in left_out and changeable(node)]


def named(node: ast.Assign | ast.Call) -> str:
    """Return the name that is assigned or called; "" where it is none."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.func
    return getattr(target, "attr", getattr(target, "id", ""))


def changeable(node: ast.AST) -> bool:
    """Return whether `change` has a rule for this node."""
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare | ast.BoolOp)


def change(node: ast.AST) -> None:
    """Change one node in place."""
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = CONNECTIVES[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()  # `not x` becomes +x: true where x is
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.1


def mutants(area: str, count: int, seed: int) -> list[tuple[Path, str, str, str]]:
    """Return (file, changed source, old text, new text) of `count` places drawn by `seed`."""
    package = ROOT / "latent_diffusion"
    files = sorted({path for pattern in AREAS[area][0] for path in package.glob(pattern)})
    every = [(path, index) for path in files for index in range(len(places(ast.parse(path.read_text()))))]
    drawn = random.Random(f"{seed} {area}").sample(every, min(count, len(every)))
    made = []
    for path, index in drawn:
        tree = ast.parse(path.read_text())
        node = places(tree)[index]
        line = node.lineno  # type: ignore[attr-defined]
        old = ast.unparse(node)
        change(node)
        made.append((path.relative_to(ROOT), ast.unparse(tree), f"{line}: {old}", ast.unparse(node)))
    return made


def noticed(folder: Path, tests: list[str], seconds: int) -> bool:
    """Run the tests until one fails; a run that takes too long counts as noticed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def main() -> int:
    """Make the changes one by one and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="changes, shared evenly between the areas")
    parser.add_argument("--area", choices=AREAS, action="append", help="areas to change; default: all")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for the tests of one change")
    arguments = parser.parse_args()
    areas = arguments.area or list(AREAS)
    missed = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in tracked.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        subprocess.run([sys.executable, "hatch_weights.py"], cwd=copy, check=True, stdout=subprocess.DEVNULL)
        for area in areas:
            tests = [name for name in AREAS[area][1] if (ROOT / name).exists()]
            for path, source, old, new in mutants(area, arguments.count // len(areas), arguments.seed):
                (copy / path).write_text(source)
                seen = noticed(copy, tests, arguments.timeout)
                shutil.copy(ROOT / path, copy / path)
                total += 1
                missed += not seen
                print(f"{'caught' if seen else 'MISSED':7} {area:12} {path}:{old} -> {new}", flush=True)
    print(f"{total - missed} of {total} changes caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
