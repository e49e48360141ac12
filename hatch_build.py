"""Compile the kernels in latent_diffusion/runtime/cpu/native/*.c and put the bundled model's weights together.

Both happen when the package is built or installed, and when this file is run in a source tree. The weights are in
`hatch_weights.py`. Each kernel is compiled once per level of processor, so that one file runs on all of them; a level
that the compiler does not have is left out. The kernels are optional: without a C compiler the install goes on without
them, and so does the package. Set LATENT_DIFFUSION_NATIVE=0 to leave them out (when the package runs: to leave them
unused).
"""

import hashlib
import importlib.util
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
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fopenmp", "-fPIC"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
LEVELS = {  # of the names in `Level` of native/library.py
    "plain": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512_vnni": [*AVX512, "-mavx512vnni"],
    "avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
}
ALONE = {"avx512_vnni": ["eight_bits.c"], "amx": ["eight_bits.c", "attention.c"]}  # gain; the rest is of a lower level
LEVELS_OF = {"x86_64": list(LEVELS), "aarch64": ["plain"]}
RECIPES = ("lora.yaml", "finetune.yaml", "inpaint.yaml")  # of configs/, those of `server/training/recipe.py`
BASE = "abilities.c"  # finds the level: any processor must be able to run it


def build() -> Path | None:
    """Compile all kernels into kernels.so beside them; return None, with the reason said, where that cannot be."""
    target = FOLDER / "kernels.so"
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("LATENT_DIFFUSION_NATIVE") == "0":
        return _without("LATENT_DIFFUSION_NATIVE is 0")
    if sys.platform != "linux" or platform.machine() not in LEVELS_OF:
        return _without(f"they are for Linux on {' or '.join(LEVELS_OF)}, not {sys.platform} on {platform.machine()}")
    if compiler is None:
        return _without("there is no C compiler")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:  # the finished file appears at once or not at all
        try:
            made = _compile(compiler, Path(folder))
        except RuntimeError as error:
            return _without(str(error))
        _seal(made)
        made.replace(target)
    return target


def _compile(compiler: str, folder: Path) -> Path:
    """Return the library of all levels that the compiler has, made in `folder`; RuntimeError without plain C."""
    sources = sorted(file for file in FOLDER.glob("*.c") if file.name != BASE)
    objects = [folder / "abilities.o"]
    _run([compiler, *FLAGS, "-c", str(FOLDER / BASE), "-o", str(objects[0])])
    for level in LEVELS_OF[platform.machine()]:
        used = [file for file in sources if file.name in ALONE.get(level, [file.name])]
        made = [folder / f"{file.stem}_{level}.o" for file in used]
        flags = [*FLAGS, *LEVELS[level], f"-DLEVEL={level}"]
        try:
            for source, file in zip(used, made, strict=True):
                _run([compiler, *flags, "-c", str(source), "-o", str(file)])
        except RuntimeError as error:
            if level == "plain":
                raise
            print(f"latent_diffusion: no kernels for {level}: {error}", file=sys.stderr)
            continue
        objects += made
    library = folder / "kernels.so"
    # without -fopenmp: the functions of OpenMP are those of torch, which is loaded before, and its threads are shared
    _run([compiler, "-shared", *map(str, objects), "-lm", "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        said = run.stderr.strip().splitlines()
        raise RuntimeError(f"{command[0]} fails: {said[0] if said else f'exit code {run.returncode}'}")


def _seal(library: Path) -> None:
    """Append the SHA-256 of a library: one that was cut or damaged later would end the process that opens it."""
    data = library.read_bytes()
    library.write_bytes(data + hashlib.sha256(data).digest())


def _without(reason: str) -> None:
    (FOLDER / "kernels.so").unlink(missing_ok=True)  # an older one may not fit the code
    print(f"latent_diffusion: no compiled kernels: {reason}; torch's own are used", file=sys.stderr)


def _weights() -> Any:
    """Return the module hatch_weights.py: a build has no folder of this file among those that are imported from."""
    spec = importlib.util.spec_from_file_location("hatch_weights", Path(__file__).with_name("hatch_weights.py"))
    assert spec is not None and spec.loader is not None, "it lies beside this file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildHook(BuildHookInterface):
    """Puts weights, kernels and the server's recipes into wheels; an editable install has them in the source tree."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build weights and kernels, and name the wheel after the platform where kernels were compiled.

        Raises:
            BuildError: the weights cannot be put together.
        """
        if self.target_name != "wheel":
            return
        build_data["artifacts"] += map(str, _weights().build_weights())
        if version == "standard":
            recipes = Path("latent_diffusion/server/training/recipes")
            build_data["force_include"] |= {f"configs/{name}": str(recipes / name) for name in RECIPES}
        kernels = build()
        if kernels is not None:
            build_data["artifacts"].append(str(kernels.relative_to(Path(__file__).parent)))
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(_weights().main() or build() is None)
