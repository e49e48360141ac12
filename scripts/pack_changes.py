"""Write a new version of the bundled model as changes of the first one's weights, in about an eighth of their size.

    python scripts/pack_changes.py NEW_FOLDER [--unit 4] [--only FILE]

NEW_FOLDER is a model folder like that of the first version, assets/emoji-first. Three files hold all of it that the
repository needs: assets/emoji-changes.safetensors.z, and weights.json and training.json of the bundled folder. The
built weights are put together from them (`hatch_weights.py`), here too.

A change is rounded to a whole number of units so that what the networks compute on training pictures stays near
(`rounding.py`). Units are --unit times the root mean square of the changes in the geometric mean over all weights; in a
row whose largest change is over 127 units it is that change / 127. Judge the built model.
"""

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # hatch_weights.py is not installed
import hatch_weights as weights
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.errors import CheckpointError, ConfigError, LatentDiffusionError
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import RECORD as TRAINING
from latent_diffusion.evaluation.trained_on import read_trained_on
from scripts.rounding import LARGEST, Moments, input_moments, output_gradients, rounded, units_of

PICTURES, SIDE = "assets/emoji-128.zip", 64
EVERY = 32  # of the training pictures: 88 of 2,809

Arrays = dict[str, np.ndarray]


def changes_of(
    first: Mapping[str, np.ndarray],
    new: Mapping[str, np.ndarray],
    share: float,
    gradients: Mapping[str, float] | None = None,
    moments: Moments | None = None,
) -> Arrays:
    """Return what makes `new` of `first`, both float16: int8 steps and float32 units of each tensor that differs.

    Args:
        first: the first version's weights.
        new: those of the new one.
        share: units over the root mean square of changes; see `rounding.units_of`, also for the gradients.
        gradients: of the networks' outputs.
        moments: of layers' inputs: the weights of such a layer are rounded together, all others to the nearest step.

    Raises:
        CheckpointError: another tensor or shape, a value that is no finite number, or nothing that differs.
    """
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (first, new)]
    if shapes[0] != shapes[1]:
        name = min(name for name in shapes[0].keys() | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        raise CheckpointError(
            f"{name}: shape {shapes[1].get(name, 'absent')} in the new model, {shapes[0].get(name, 'absent')} in the "
            "first version; only changes of the same tensors are packed"
        )
    changes = {name: new[name].astype(np.float32) - old.astype(np.float32) for name, old in first.items()}
    for name, change in changes.items():
        if not np.isfinite(change).all():
            raise CheckpointError(f"{name}: a weight is no finite number; train again from an earlier checkpoint")
    changes = {name: change for name, change in changes.items() if change.any()}
    if not changes:
        raise CheckpointError("no weight of the new model differs from the first version's: nothing to pack")
    sizes = {
        name: (change.size, float(np.sqrt(np.mean(np.square(change, dtype=np.float64)))))
        for name, change in changes.items()
    }
    found: Arrays = {}
    for name, unit in units_of(sizes, gradients or {}, share).items():
        change = changes[name]
        rows = change.reshape(len(change) if change.ndim > 1 else 1, -1)
        units = np.maximum(np.float32(unit), np.abs(rows).max(1) / np.float32(LARGEST))
        if moments and name in moments:
            steps = rounded(torch.from_numpy(rows), torch.from_numpy(units), moments[name]).numpy()
        else:
            steps = np.rint(rows / units[:, None]).clip(-LARGEST, LARGEST).astype(np.int8)
        found[name], found[name + weights.UNIT] = steps.reshape(change.shape), units
    return found


def packed(changes: Mapping[str, np.ndarray]) -> bytes:
    """Return the file of the changes: safetensors in two zlib streams, header and units, then the steps.

    The steps are coded by Huffman codes alone, which come nearest to the entropy of such noise: 2.39 bits for 2.34,
    where bz2 takes 2.68 and lzma 2.58 at best.
    """
    header: dict[str, Any] = {}
    changes = {name: array if name.endswith(weights.UNIT) else weights.paired(array) for name, array in changes.items()}
    data = {"units": bytearray(), "steps": bytearray()}
    room = sum(4 * array.size for name, array in changes.items() if name.endswith(weights.UNIT))
    for name in sorted(changes):
        place, start = ("units", 0) if name.endswith(weights.UNIT) else ("steps", room)
        start += len(data[place])
        kind = {"float32": "F32", "int8": "I8", "uint8": "U8"}[changes[name].dtype.name]
        raw = changes[name].astype(weights.TYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(changes[name].shape), "data_offsets": [start, start + len(raw)]}
        data[place] += raw
    head = zlib.compress(weights.join(header, bytes(data["units"]), {"format": "pt"}), 9)
    coder = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return head + coder.compress(bytes(data["steps"])) + coder.flush()


def arrays_of(folder: Path) -> Arrays:
    """Return the weights of a model folder as `save_folder` writes it; names begin with the part's."""
    found: Arrays = {}
    for part, name in weights.PARTS.items():
        header, data = weights.split(weights.read(folder / name))
        found |= {f"{part}/{key}": weights.tensor(data, entry) for key, entry in header.items()}
    return found


def require_same_kind(first: Components, new: Components) -> None:
    """Check that the new weights mean the same beside the files of the bundled model's folder, which stay.

    Raises:
        CheckpointError: another architecture, noise schedule, prediction or vocabulary.
    """
    parts = [
        {
            "U-Net": asdict(model.unet.config),
            "autoencoder": asdict(model.autoencoder.config),
            "noise schedule": {"law": repr(model.schedule), "prediction": repr(model.prediction)},
            "vocabulary": {"tokens": [tower.tokenizer.get_vocab() for tower in model.text_encoder.towers]},
        }
        for model in (first, new)
    ]
    for part, values in parts[0].items():
        fields = [name for name, value in values.items() if parts[1][part].get(name) != value]
        if fields:
            raise CheckpointError(f"{part}: {', '.join(fields)} differ from the first version's; changes need the same")


def pack(folder: Path, share: float, root: Path = weights.ROOT, *, only: Path | None = None) -> None:
    """Write changes and weights.json of the model in `folder`, build its weights, and print size and error.

    With `only` nothing but this file of changes is written: weights that a training goes on from.

    Raises:
        LatentDiffusionError: the folder is damaged, or no new version of the bundled model; or `share` is not positive.
    """
    if not share > 0:
        raise ConfigError(f"--unit {share:g} must be above 0")
    first, new = load_folder(root / weights.FIRST, torch.float16), load_folder(folder, torch.float16)
    require_same_kind(first, new)
    with tempfile.TemporaryDirectory() as place:
        save_folder(new, Path(place) / "model", torch.float16)
        wanted = arrays_of(Path(place) / "model")
    old = arrays_of(root / weights.FIRST)
    found = changes_of(old, wanted, share, *_sensitivity(folder))
    file = packed(found)
    if only is not None:
        weights.write(only, file)
        print(f"{only}: {len(file) / 1e6:.3f} MB")
        return
    made = {
        name: weights.put_together(weights.read(root / weights.FIRST / name), found, part, weights.digest(file))
        for part, name in weights.PARTS.items()
    }
    files = {name: {"bytes": len(data), "sha256": weights.digest(data)} for name, data in made.items()}
    weights.write(root / weights.CHANGES, file)
    record = json.dumps({"changes": weights.digest(file), "files": files}, indent=1) + "\n"
    weights.write(root / weights.BUILT / weights.RECORD, record.encode())
    if (folder / TRAINING).is_file():  # what `evaluate` asks follows from it
        weights.write(root / weights.BUILT / TRAINING, weights.read(folder / TRAINING))
    weights.build_weights(root)
    built = arrays_of(root / weights.BUILT)
    count = sum(array.size for name, array in found.items() if not name.endswith(weights.UNIT))
    error, change = distance(built, wanted), distance(old, wanted)
    print(f"{weights.CHANGES}: {len(file) / 1e6:.3f} MB, {8 * len(file) / count:.3f} bits for each of {count} weights")
    print(f"root mean square error {error:.3g}, {error / change:.4f} of the change")


def _sensitivity(folder: Path) -> tuple[dict[str, float], Moments]:
    """Return gradients of outputs and moments of inputs for some of the model's training pictures."""
    pictures, model = read_pictures(weights.ROOT / PICTURES), load_folder(folder)
    rows = [row for row in select(pictures.rows, read_trained_on(folder).where) if row.split == "train"][::EVERY]
    images, captions = pictures.load(rows, SIDE), [row.text for row in rows]
    return output_gradients(model, images, captions), input_moments(model, images, captions)


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Return the root mean square difference of two models' weights."""
    total = sum(float(((one[name].astype(np.float64) - other[name]) ** 2).sum()) for name in one)
    return (total / sum(array.size for array in one.values())) ** 0.5


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="NEW_FOLDER", help="model folder")
    parser.add_argument(
        "--unit", type=float, default=4.0, help="units over the root mean square of changes (default 4)"
    )
    parser.add_argument("--only", type=Path, metavar="FILE", help="write the changes here, and no new version")
    given = parser.parse_args()
    try:
        pack(given.folder, given.unit, only=given.only)
    except weights.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except LatentDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
