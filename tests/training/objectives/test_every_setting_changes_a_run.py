"""Every setting of every schema changes something that can be seen: weights, losses, files, messages or a refusal."""

import copy
import functools
import hashlib
import json
import logging
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from accelerate import Accelerator
from PIL import Image, ImageDraw
from pydantic import BaseModel
from setting_cases import Change, bases, sections

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.config import RunConfig, parse_section, sections_in
from latent_diffusion.data import opening
from latent_diffusion.data.batches import folder as folder_module
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.checks import checking
from latent_diffusion.data.composed.colours import TARGETS
from latent_diffusion.errors import LatentDiffusionError
from latent_diffusion.registry import find, names
from latent_diffusion.runtime.cpu.training_kernels import TrainingKernels
from latent_diffusion.training import run as runs
from latent_diffusion.training.objective import Share
from latent_diffusion.training.optimizer import build_optimizer, optimizer_settings
from latent_diffusion.training.trainer import Trainer

OBJECTIVES, OPTIMIZERS = "latent_diffusion.training.objectives", "latent_diffusion.training.optimizers"
OTHERS = {
    "learning_rate": 1e-2, "weight_decay": 0.5, "betas": (0.5, 0.9), "eps": 1.0, "momentum": 0.1, "clip": 3.0,
    "beta2_decay": -0.1, "d_coef": 2.0, "bias_correction": True, "safeguard_warmup": True,
}  # fmt: skip
"""Another value of each setting of the optimizers."""
BASES = ("toy", "data", "sources", "unet", "lora", "textual_inversion", "concepts", "autoencoder", "classifier",
         "latent_clip", "clip", "consistency", "progressive", "distribution_matching", "learned_schedule",
         "learned_variance", "reflow", "bridge", "plane")  # fmt: skip
"""The runs that are changed."""
MODELS = ("unet", "lora", "textual_inversion", "concepts")
"""Those of them that read a model."""
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "schedule_free": "schedulefree"}


def settings(kind: type[BaseModel], but: type[BaseModel] | None = None) -> set[str]:
    """Names "Class.field" of a section and of all within it, but for those that it has in common with another."""
    shared = set() if but is None else but.model_fields.keys() & kind.model_fields.keys()
    found = {f"{kind.__name__}.{name}" for name in kind.model_fields.keys() - shared}
    for name in kind.model_fields:
        for part in sections_in(kind.model_fields[name].annotation):
            found |= settings(part)
    return found


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path such as "objective.words.0.token"; sections on the way to it are made."""
    *way, last = path.split(".")
    place: Any = values
    for name in way:
        if isinstance(place, dict) and place.get(name) is None:
            place[name] = {}
        place = place[int(name) if isinstance(place, list) else name]
    place[int(last) if isinstance(place, list) else last] = value


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def files(folder: Path) -> dict[str, str]:
    """What a folder holds: tensors and pictures by content, all else by name; names of trackers' files have a time."""
    found = {}
    for file in folder.rglob("*"):
        name = re.sub(r"tfevents.*", "tfevents", str(file.relative_to(folder)))
        if file.suffix == ".safetensors":
            found |= {f"{name}/{key}": digest(value) for key, value in read_tensors(file).items()}
        elif file.is_file():
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix == ".png" else ""
    return found


def every_setting() -> set[str]:
    """Every setting of a run. What an objective inherits from another, code and settings, counts once."""
    found = settings(RunConfig)
    for name in names(OBJECTIVES):
        kind = find(OBJECTIVES, name)
        parent = kind.__mro__[1]
        found |= settings(kind.settings_type, getattr(parent, "settings_type", None))  # None: of no objective
        found |= settings(kind.data_type)
    return found


@pytest.fixture(scope="module")
def places(tmp_path_factory, pictures, tiny_folder) -> dict[str, str]:
    """Folders and files that the changes name."""
    root = tmp_path_factory.mktemp("settings")

    def picture(name: str, size: tuple[int, int], colour: tuple[int, ...] | str | int, mode: str = "RGB") -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.linear_gradient("L").resize(size).convert(mode)
        image.paste(colour, (0, 0, size[0] // 2, size[1] // 2))
        image.save(file)

    def table(folder: str, rows: list[dict]) -> None:
        (root / folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    fields = {"text": "a disc", "tags": "a, b, c, d, e", "lines": "one\ntwo", "choices": "{red|green} disc"}
    rows = [fields | {"kept": "a, b ||| c;; d"}]
    for name, size, mode in (("w.png", (128, 64), "RGBA"), ("t.png", (64, 160), "RGB"), ("sub/s.png", (40, 36), "RGB")):
        picture(f"odd/{name}", size, (200, 0, 0, 0)[: len(mode)], mode)
    table("odd", [rows[0] | {"file_name": name} for name in ("w.png", "t.png", "sub/s.png")])
    for k in range(4):
        picture(f"masked/{k}.png", (32, 32), (0, 40 * k, 0, 0), "RGBA")
        picture(f"masked/{k}.mask.png", (32, 32), 255, "L")
    red = {"text": "a red disc", "split": "train"}
    table("masked", [red | {"file_name": f"{k}.png", "mask_file": f"{k}.mask.png"} for k in range(4)])
    picture("large/l.jpg", (256, 256), "red")
    table("large", [{"file_name": "l.jpg", "text": "a disc", "text_alt": "a square", "split": "val"}])
    for name in ("bad/a.png", "bad/b.png", "files/a.png", "bare/a.png", "bare/b.png"):
        picture(name, (32, 32), "red")
    (root / "bad/b.png").write_bytes((root / "bad/b.png").read_bytes()[:60])
    for name in ("bad/a.txt", "bad/b.txt", "files/a.txt", "files/a.tags", "bare/a.txt"):
        (root / name).write_text(f"words of {name}")
    (root / "quarantine").write_text(f"{pictures}\t0.png\tblurred\n")
    things = []
    for name, colour in (("disc", (200, 60, 60)), ("box", (70, 110, 220)), ("plate", (120, 120, 125))):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((12, 14, 50, 48), fill=colour, outline=(40, 40, 40), width=3)
        (root / "things").mkdir(exist_ok=True)
        image.save(root / "things" / f"{name}.png")
        things.append({"file_name": f"{name}.png", "text": f"a {name}", "name": name, "split": "train"})
    table("things", things)
    held = [{"kind": "colour", "value": value, "names": ["disc"]} for value in TARGETS]
    (root / "held_out").write_text("".join(json.dumps(one) + "\n" for one in held))
    import pyarrow
    import pyarrow.parquet

    (root / "table").mkdir()
    cells = [[{"bytes": (pictures / f"{k}.png").read_bytes(), "path": None}] for k in (0, 1)]
    held = pyarrow.table({"image": cells[0], "thumb": cells[1], "caption": ["a disc"]})
    pyarrow.parquet.write_table(held, root / "table" / "0.parquet")
    named = {
        folder: str(root / folder)
        for folder in ("odd", "masked", "large", "bad", "files", "bare", "table", "things", "held_out")
    }
    return {
        **named, "pictures": str(pictures), "quarantine": str(root / "quarantine"), "output": str(root / "run"),
        "adapter": str(root / "adapter"), "start": str(root / "adapter" / "run.safetensors"),
        "other": str(root / "other"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def table(places, tiny_folder) -> dict[str, Any]:
    other = Path(places["other"])
    shutil.copytree(tiny_folder, other)
    for file in other.rglob("*.safetensors"):
        read = read_tensors(file)
        write_tensors(file, {k: v * 1.1 if v.is_floating_point() else v for k, v in read.items()}, {"format": "pt"})
    written = [places["output"] + ending for ending in ("", "-elsewhere", "-cache", "-cache2")]
    made = {"bases": bases(tiny_folder, places), "sections": sections(tiny_folder, other, places)}
    start = Path(places["adapter"])
    start.mkdir()
    look_at_updates(made["bases"]["lora"], start, export=True)
    return made | {"made": {}, "written": written}


def test_every_setting_is_covered(table):
    covered = {f"{kind}.{name}" for kind, section in table["sections"].items() for name in section.changes}
    assert covered == every_setting()


def cached(data: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What lies in the cache of a `data:` section."""
    folder = (data.get("cache") or {}).get("folder")
    return {} if folder is None else {folder: files(Path(folder))}


class Watch:
    """Sees each update: figures, threads that make batches, bytes that wait for the backward pass."""

    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []
        self.workers, self.bytes = 0, 0

    def after_backward(self, player: str, step: int) -> None:
        self.workers = max(self.workers, sum(thread.name.startswith("data") for thread in threading.enumerate()))

    def after_update(self, trainer: Trainer, figures: dict[str, float]) -> None:
        self.figures.append(figures)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes += tensor.nbytes
        return tensor


@functools.cache
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def look_at_updates(values: dict[str, Any], folder: Path, *, export: bool) -> dict[str, Any]:
    """Train in this process without writing; return all that can be seen of it."""
    run = parse_section(RunConfig, values, "run")
    torch.manual_seed(run.seed)
    torch.set_num_threads(1)
    objective, watch = runs.build_objective(run), Watch()
    run = runs.with_steps(run, objective)
    trainer = Trainer(objective, run, accelerator())
    with torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        trainer.fit([watch])
    with objective.assembled(), torch.no_grad():
        drawn = [picture.tobytes() for picture in objective.draw(Share())] if run.sample else []
        held = objective.evaluate(Share()) if objective.held_out is not None else {}
        if export:
            objective.export(folder, averaged=False)
    frozen = [module for module in objective.frozen.values() for module in module.modules()]
    return {
        "weights": {f"{n}.{k}": digest(v) for n, of in trainer.trainable.items() for k, v in of.items()},
        "figures": watch.figures,
        "held out": {name: figure.tolist() for name, figure in held.items()},
        "drawn": drawn,
        "files": files(folder),
        "workers": watch.workers,
        "bytes": watch.bytes,
        "cache": cached(values["data"]),
        "frozen": sorted(f"{type(m).__name__} {p.device}" for m in frozen for p in m.parameters(recurse=False)),
    }


def look_at_run(values: dict[str, Any], folder: Path, *, again: dict | None) -> dict[str, Any]:
    """Train to the end, perhaps twice in one folder; return all that can be seen of it but its record of settings."""
    run = parse_section(RunConfig, values, "run")
    assert runs.train(run) == 0
    if again is not None:
        assert runs.train(parse_section(RunConfig, values | again, "run")) == 0
    lines = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    own = ("seconds", "time", "images", "share")  # of what depends on the clock
    record = json.loads((run.output / "config.json").read_text())
    return {
        "output": str(run.output),
        "files": files(run.output),
        "log": [{k: v for k, v in line.items() if not k.startswith(own)} for line in lines],
        "record": {name: value for name, value in record.items() if name != "config"},
    }


def look_at_data(values: dict[str, Any], decoded: list[str]) -> dict[str, Any]:
    """Read a data set; return its samples and how often pictures were decoded."""
    data = ImageFolder(parse_section(DataConfig, values, "data"), seed=0)
    samples = [data.sample(number) for number in range(12)]
    shown = [
        (s.row, s.flipped, hashlib.sha256(s.image.numpy().tobytes()).hexdigest(), s.caption, s.size_ids, s.weight)
        for s in samples if s.image is not None
    ]  # fmt: skip
    return {"samples": shown, "pass": data.pass_length, "decoded": sorted(decoded), "cache": cached(values)}


def look(base: str, values: dict[str, Any], how: dict[str, Any], folder: Path, decoded: list[str], caplog) -> tuple:
    """Return the message by which a run is refused, or "", and what can be seen of it."""
    caplog.clear()
    decoded.clear()
    try:
        if base in ("data", "sources"):
            seen = look_at_data(values, decoded)
        elif base == "toy":
            seen = look_at_run(values, folder, again=how.get("again"))
        else:
            seen = look_at_updates(values, folder, export="export" in how)
    except LatentDiffusionError as refused:
        return str(refused), {}
    told = [r.getMessage() for r in caplog.records if not r.getMessage().startswith(("step ", "expected end"))]
    return "", seen | {"told": [line.replace(str(folder), "") for line in told]}


@pytest.fixture
def seen(table, models_read_once, tmp_path_factory, monkeypatch, caplog) -> Callable[..., tuple]:
    """A function that makes a run of a base with changes and returns what `look` sees; unchanged runs are made once."""
    caplog.set_level(logging.INFO, logger="latent_diffusion")
    decoded: list[str] = []
    for place in (checking, folder_module):
        plain = place.decode_row
        monkeypatch.setattr(place, "decode_row", lambda *given, plain=plain: (decoded.append(""), plain(*given))[1])
    read = opening.read_within
    monkeypatch.setattr(opening, "read_within", lambda *given: (decoded.append(f"waits {given[0]} s"), read(*given))[1])
    here = table["bases"]["data"]["path"]  # in place of a hub, which tests/data/test_hub.py has

    def asked(path: str, *, download: bool) -> str:
        decoded.append(f"download: {download}")
        return here

    monkeypatch.setattr(opening, "fetched", asked)

    def of(base: str, beside: dict[str, Any], change: tuple[str, Any] | None = None) -> tuple:
        if base == "toy":
            monkeypatch.setattr(runs, "find", lambda package, name: toy.ToyObjective)
            monkeypatch.setattr(runs, "choose_kernels", lambda *given: TrainingKernels(native_gelu=True))
        key = json.dumps([base, beside])
        if change is None and key in table["made"]:
            return table["made"][key]
        values = copy.deepcopy(table["bases"][base])
        for path, value in [*beside.items(), *([change] if change else [])]:
            if path not in ("like", "again", "export"):
                put(values, path, copy.deepcopy(value))
        folder = tmp_path_factory.mktemp("seen", numbered=True)
        made = look(base, values, beside, folder, decoded, caplog)
        for place in table["written"]:
            shutil.rmtree(place, ignore_errors=True)
        return table["made"].setdefault(key, made) if change is None else made

    return of


def cases() -> Iterator[Any]:
    """Every setting; those that need a model for each change are in the slow part."""
    known = sections(Path("tiny"), Path("other"), defaultdict(str))
    for name in sorted(every_setting()):
        kind, field = name.split(".")
        section = known.get(kind)
        change = None if section is None else section.changes.get(field)
        base = change.beside.get("like") if isinstance(change, Change) else None
        of_model = section is not None and (base or section.base) in MODELS
        yield pytest.param(name, marks=pytest.mark.slow if of_model else ())


@pytest.mark.parametrize("name", list(cases()))
def test_every_setting_changes_a_run(name, table, seen):
    kind, field = name.split(".")
    section = table["sections"][kind]
    change = section.changes[field]
    change = change if isinstance(change, Change) else Change(change)
    base = change.beside.get("like", section.base)
    message, before = seen(base, change.beside)
    other, after = seen(base, change.beside, (f"{section.prefix}{field}", change.value))
    if change.refused:
        assert (change.refused in message) != (change.refused in other), (message, other)
        assert not (message and other)
    else:
        assert (message, other) == ("", "")
        assert before != after


@pytest.mark.parametrize("base", BASES)
def test_the_same_run_is_seen_alike(base, table, seen):
    """Without this the comparison could find a difference that no setting made."""
    assert table["bases"].keys() == set(BASES)
    assert seen(base, {}) == seen(base, {}, ("flip", False) if base in ("data", "sources") else ("seed", 0))


@pytest.mark.parametrize("name", names(OPTIMIZERS))
def test_every_setting_of_an_optimizer_changes_the_weights(name):
    kind = find(OPTIMIZERS, name)
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])

    def trained(**changes: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layer: Any = torch.nn.Linear(64, 64)
        layer.learning_rates = dict
        values = {"output": "x", "objective": {"name": "unet"}, "data": {}, "steps": 1, "batch_size": 1}
        run = RunConfig.model_validate(values | {"optimizer": {"name": name, **changes}})
        optimizer = build_optimizer(layer, optimizer_settings(run))
        rate, x = optimizer.param_groups[0]["lr"], torch.randn(8, 64)
        for update in range(8):
            for group in optimizer.param_groups:
                group["lr"] = rate * (update + 1) / 8
            (layer(x) - 3).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(layer.parameters())

    plain = trained()
    for field in kind.model_fields:
        other = trained(**{field: OTHERS[field]})
        assert not all(map(torch.equal, plain, other)), field
