"""Compile the kernels in latent_diffusion/runtime/cpu/native/*.c when the package is built or installed.

They are optional: without a C compiler the install goes on without them, and so does the package. Set
LATENT_DIFFUSION_NATIVE=0 to leave them out (when the package runs: to leave them unused), or run this file to
(re)build them in a source tree.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, outside of a build
    BuildHookInterface = object

FOLDER = Path(__file__).parent / "latent_diffusion" / "runtime" / "cpu" / "native"
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared"]


def build() -> Path | None:
    """Compile all kernels into kernels.so beside them; return None, with the reason said, where that cannot be."""
    target = FOLDER / "kernels.so"
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("LATENT_DIFFUSION_NATIVE") == "0":
        return _without("LATENT_DIFFUSION_NATIVE is 0")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return _without(f"they are for Linux on x86-64, not {sys.platform} on {platform.machine()}")
    if compiler is None:
        return _without("there is no C compiler")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:  # the finished file appears at once or not at all
        made = Path(folder) / target.name
        command = [compiler, *FLAGS, *map(str, sorted(FOLDER.glob("*.c"))), "-lm", "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            said = run.stderr.strip().splitlines()
            return _without(f"{compiler} fails: {said[0] if said else f'exit code {run.returncode}'}")
        _seal(made)
        made.replace(target)
    return target


def _seal(library: Path) -> None:
    """Append the SHA-256 of a library: one that was cut or damaged later would end the process that opens it."""
    data = library.read_bytes()
    library.write_bytes(data + hashlib.sha256(data).digest())


def _without(reason: str) -> None:
    (FOLDER / "kernels.so").unlink(missing_ok=True)  # an older one may not fit the code
    print(f"latent_diffusion: no compiled kernels: {reason}; torch's own are used", file=sys.stderr)


class KernelHook(BuildHookInterface):
    """Puts the kernels into wheels; an editable install finds them in the source tree."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the wheel after the platform where that worked."""
        if self.target_name != "wheel":
            return
        kernels = build()
        if kernels is not None:
            build_data["artifacts"].append(str(kernels.relative_to(Path(__file__).parent)))
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(build() is None)
