"""Run the test suite on the configurations of docs/installs.md and print its table, one row as each run ends.

usage: python scripts/run_matrix.py FOLDER [--only NAME]... [-- PYTEST ARGUMENTS]

FOLDER keeps the environments (3 to 7 GB each) and the log of each run. It needs uv (https://docs.astral.sh/uv/). Run
`python hatch_build.py` before, which compiles the kernels in C and puts the bundled model's weights together.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
TESTED = ("-c", "constraints.txt")
LIBRARIES = ("torch", "transformers", "peft", "diffusers")
SMALL = {"LATENT_DIFFUSION_CPU_LEVEL": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
VERSIONS = "import sys\nfrom importlib.metadata import version\nprint(*map(version, sys.argv[1:]))"


@dataclass(frozen=True)
class Configuration:
    """One row: a Python, how uv chooses releases, a release of torch or None, and whether the processor is limited."""

    python: str
    choice: tuple[str, ...] = TESTED
    torch: str | None = None
    limited: bool = False


CONFIGURATIONS = {
    "tested": Configuration("3.11"),
    "tested, AVX2 alone": Configuration("3.11", limited=True),
    "tested, torch 2.13": Configuration("3.11", torch="2.13.0"),
    "tested, Python 3.13": Configuration("3.13"),
    "newest": Configuration("3.13", ()),
    "lowest": Configuration("3.11", ("--resolution", "lowest-direct")),
}


def environment(configuration: Configuration, folder: Path) -> Path:
    """Return the Python of an environment with what the configuration asks for, made if it is not there."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch = folder / "torch.txt"
        torch.write_text(f"torch=={configuration.torch}\n" if configuration.torch else "")
        releases = folder / "releases.txt"
        choose = ["--python-version", configuration.python, *configuration.choice, "-c", str(torch), "--extra", "test"]
        for command in (
            ["venv", "-q", "--python", configuration.python, str(folder / "venv")],
            ["pip", "compile", "-q", *choose, "pyproject.toml", "-o", str(releases)],
            ["pip", "install", "-q", "--python", str(python), "-r", str(releases)],
        ):
            subprocess.run(["uv", *command], cwd=ROOT, check=True)
    return python


def row(name: str, configuration: Configuration, folder: Path, arguments: list[str]) -> str:
    """Run pytest and return a row of the table."""
    python, results = environment(configuration, folder), folder / "results.xml"
    results.unlink(missing_ok=True)
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)} | (SMALL if configuration.limited else {})
    with (folder / "pytest.log").open("w") as log:
        command = [python, "-m", "pytest", f"--junit-xml={results}", *arguments]
        subprocess.run(command, cwd=ROOT, env=surroundings, stdout=log, stderr=log)
    found = ElementTree.parse(results).getroot()[0].attrib
    tests, failed, skipped = int(found["tests"]), int(found["failures"]) + int(found["errors"]), int(found["skipped"])
    versions = subprocess.check_output([python, "-c", VERSIONS, *LIBRARIES], text=True).split()
    processor = "AVX2, no kernels in C" if configuration.limited else "as it is"
    cells = (name, configuration.python, *versions, processor, tests - failed - skipped, failed, skipped)
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", choices=CONFIGURATIONS, help="run this configuration; repeatable")
    own, arguments = sys.argv[1:], []
    if "--" in own:
        own, arguments = own[: own.index("--")], own[own.index("--") + 1 :]
    given = parser.parse_args(own)
    print("| Configuration | Python |", " | ".join(LIBRARIES), "| Processor | Passed | Failed | Skipped |")
    print("|---|" + "---|" * (len(LIBRARIES) + 5), flush=True)
    for name in given.only or CONFIGURATIONS:
        place = given.folder.resolve() / name.replace(", ", "-").replace(" ", "-")
        print(row(name, CONFIGURATIONS[name], place, arguments), flush=True)


if __name__ == "__main__":
    main()
