"""The model card of a result: README.md, with the data, the settings, the figures and the sheet of a run.

Its header is that of the Hugging Face Hub; nothing in it depends on the time or the machine. The licence is left to the
person who made the model.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.training.monitoring.previews import CONTACT

__all__ = ["LICENCE_LINE", "write_card"]

LICENCE_LINE = "# license: choose one, such as apache-2.0; the licences of the base model and of the pictures bind you"
"""Stands in the header until a person replaces it."""

SETTINGS = (
    *("seed", "batch_size", "precision", "optimizer.name", "optimizer.learning_rate", "decay", "warmup"),
    *("objective.weighting", "objective.adapter.form", "objective.adapter.rank", "objective.adapter.alpha"),
    *("objective.adapter.layers", "objective.adapter.parts", "objective.train.parts", "ema.decay"),
)
FIGURES = {
    "unet/loss": "training loss, mean of the last interval",
    "validation_loss": "loss of held-out pictures",
    "validation_psnr": "PSNR of held-out pictures, dB",
    "validation_accuracy": "share of held-out pictures that find their caption among 64",
    "copies": "share of the sample pictures that are copies of training pictures",
}


def write_card(folder: Path, run_folder: Path, name: str, record: Mapping[str, Any], samples: int | None) -> None:
    """Write README.md, and the sheet beside it where the run has one, into the folder of a result.

    Args:
        folder: of the result, with its files in place.
        run_folder: of the run, with its log and sample pictures.
        name: what the result is called.
        record: what training.json holds.
        samples: samples of one pass through the data; None where they have no end.
    """
    config = record["config"]
    objective, data = config["objective"], config["data"]
    adapters = sorted(folder.glob("*.safetensors"))
    sheet = run_folder / "samples" / CONTACT
    if sheet.is_file():
        shutil.copyfile(sheet, folder / CONTACT)
    base = objective.get("init")
    tags = ["text-to-image", "diffusers", *(["lora"] if adapters else [])]
    header = ["---", "library_name: diffusers", f"tags: {json.dumps(tags)}", LICENCE_LINE, "---"]
    lines = [*header, "", f"# {name}", "", f"Trained with `latent_diffusion`, objective `{objective['name']}`"]
    lines[-1] += f", from `{base}`." if base else "."
    updates = f"{record['step']:,} updates of {config['batch_size']}"
    passes = f", {record['step'] * config['batch_size'] / samples:.4g} passes through the data" if samples else ""
    lines += ["", "## Data", "", f"{updates}{passes}.", "", *_table(_flat(data), "setting", "value")]
    settings = {key: value for key, value in _flat(config).items() if key in SETTINGS and value is not None}
    lines += ["", "## Settings", "", *_table(settings, "setting", "value"), "", "`training.json` has all of them."]
    figures = _figures(run_folder / "log.jsonl", record["step"])
    if figures:
        lines += ["", "## Figures", "", *_table(figures, "figure", "value")]
    if sheet.is_file():
        lines += ["", "## Samples", "", f"A row for every checkpoint, all with the same seeds.\n\n![]({CONTACT})"]
    for file in adapters:
        facts = {key: text for key, text in open_file(file)[1].items() if key.startswith("modelspec.")}
        if facts:
            lines += ["", f"## {file.name}", "", *_table(facts, "ModelSpec", "value")]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _figures(log: Path, step: int) -> dict[str, str]:
    """Return the newest value of each figure that a log has up to a step, with the step where it is an earlier one."""
    found: dict[str, tuple[float, int]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        values = json.loads(line)
        if values["step"] <= step:
            found |= {key: (v, values["step"]) for key, v in values.items() if isinstance(v, int | float)}
    bands = {f"validation_loss_{k}": f"in band {k + 1} of 4 of the noise levels, 1 the cleanest" for k in range(4)}
    return {
        meaning: f"{found[key][0]:.4g}" + (f" (after {found[key][1]:,})" if found[key][1] != step else "")
        for key, meaning in (FIGURES | bands).items()
        if key in found
    }


def _table(values: Mapping[str, Any], *heads: str) -> list[str]:
    rows = [f"| {key} | {_cell(value)} |" for key, value in values.items()]
    return [f"| {' | '.join(heads)} |", "|---|---|", *rows]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
