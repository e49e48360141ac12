"""Write the model folder that a file of changes makes of the first version of the bundled model.

    python scripts/unpack_changes.py assets/emoji-changes.safetensors.z OUTPUT

`pack_changes.py --only FILE` writes such a file: weights of a training that is not finished, which goes on from them.
"""

import argparse
import shutil
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # hatch_weights.py is not installed
import hatch_weights as weights


def unpack(file: Path, output: Path, root: Path = weights.ROOT) -> None:
    """Write the model folder `output`, without CLIP and prompt forms: both are the first version's.

    Raises:
        BuildError: the file is missing or damaged, or the folder is there already.
    """
    if output.exists():
        raise weights.BuildError(f"{output}: exists; choose another folder")
    packed = weights.read(file)
    try:
        changes = weights.tensors(packed)
    except (ValueError, KeyError, zlib.error) as error:
        raise weights.BuildError(f"{file}: no file of changes, or damaged: {error}") from None
    names = ("clip", "*.safetensors", "prompts.json", "names.txt", "README.md", "training.json")
    shutil.copytree(root / weights.FIRST, output, ignore=shutil.ignore_patterns(*names))
    for part, name in weights.PARTS.items():
        first = weights.read(root / weights.FIRST / name)
        weights.write(output / name, weights.put_together(first, changes, part, weights.digest(packed)))


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="of changes")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="new folder")
    given = parser.parse_args()
    try:
        unpack(given.file, given.output)
    except weights.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
