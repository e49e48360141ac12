"""Settings that cannot be combined: each is refused, and docs/training.md has the table of them with the reasons."""

import ast
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from accelerate import Accelerator
from pydantic import ValidationError

import latent_diffusion
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.config import RunConfig, parse_section
from latent_diffusion.diffusion.prediction import FLOW
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.training.plan.run_plan import with_steps
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.trainer import Trainer

PACKAGE = Path(latent_diffusion.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "training.md"
START, END = "<!-- made by tests/training/test_refusals.py -->\n", "<!-- end -->"

UNET, LORA = {"name": "unet", "init": "MODEL"}, {"name": "lora", "init": "MODEL"}
WORDS = [{"token": "disc", "start": "sun"}]
INVERSION = {"name": "textual_inversion", "init": "MODEL", "words": WORDS}
CLIP = {
    "name": "clip", "embed_dim": 8, "patch_size": 16, "text": {"width": 8, "layers": 1, "heads": 2},
    "vision": {"width": 8, "layers": 1, "heads": 2},
}  # fmt: skip
VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8}
AUTOENCODER = {"name": "autoencoder", "perceptual": 0.0}
CONCEPTS = {"name": "concepts", "init": "MODEL", "concepts": [{"prompt": "a red disc"}]}
CONSISTENCY = {"name": "consistency", "init": "MODEL"}
MATCHING = {"name": "distribution_matching", "init": "MODEL"}
SCHEDULE, VARIANCE = ({"name": name, "init": "MODEL"} for name in ("learned_schedule", "learned_variance"))
REFLOW = {"name": "reflow", "init": "MODEL", "pairs": {"steps": 1}}
BRIDGE = {"name": "bridge", "init": "MODEL", "start": {"split": "val"}, "match": "turn"}
CLASSIFIER = {"name": "classifier", "model": "MODEL", "fields": ["turn"], "channels": [8], "groups": 4}
LATENT_CLIP = {"name": "latent_clip", "model": "MODEL", "channels": [8], "groups": 4}
PARTS = {"vae": "MODEL/vae", "text_encoder": "MODEL"}
SIZES = {
    "block_out_channels": [16, 16], "layers_per_block": 1, "cross_attention": [True, True],
    "num_attention_heads": [2, 2], "cross_attention_dim": 32, "norm_num_groups": 8, "sample_size": 8,
}  # fmt: skip
PICTURES = {"path": "PICTURES", "size": 32}
ALONE = {"captions": []}
POINTS = {"side": 5}  # data of points in place of pictures, with its defaults
NO_TIME = {"law": "logit_normal", "mean": 50.0, "high": 0.5}
ZERO_SNR = {"rescale_betas_zero_snr": True}


def unet(**settings) -> dict[str, Any]:
    return {"objective": UNET | settings}


def lora(**settings) -> dict[str, Any]:
    return {"objective": LORA | settings}


def adapter(**settings) -> dict[str, Any]:
    return lora(adapter={"rank": 1, "layers": ["attn2.to_v"], **settings})


def autoencoder(*, data=None, **settings) -> dict[str, Any]:
    return {"objective": AUTOENCODER | {"model": VAE} | settings, "data": ALONE | (data or {})}


def reflow(*, data=None, **settings) -> dict[str, Any]:
    return {"objective": REFLOW | settings, "data": {"captions": ["text"]} | (data or {})}


def bridge(*, data=None, **settings) -> dict[str, Any]:
    return {"objective": BRIDGE | settings, "data": {"where": {"split": "train"}} | (data or {})}


def clip(*, data=None, **settings) -> dict[str, Any]:
    return {"objective": CLIP | settings, "data": data or {}}


COMBINATIONS: dict[str, dict[str, Any]] = {
    "`steps: 100`, `passes: 2`": {"steps": 100, "passes": 2},
    "neither `steps` nor `passes`": {"steps": None},
    "`decay: cosine`, `warmup: 100`, `steps: 100`": {"decay": "cosine", "warmup": 100, "steps": 100},
    "`decay: cosine`, `warmup: 100`, `passes: 2` of 6 pictures": {
        "decay": "cosine",
        "warmup": 100,
        "steps": None,
        "passes": 2,
    },
    "`batch_size: 8`, `accumulation: 3`": {"batch_size": 8, "accumulation": 3},
    "`objective: {name: clip}`, `accumulation: 2`": {"objective": CLIP, "accumulation": 2},
    "`objective: {name: concepts}`, `passes: 2`": {"objective": CONCEPTS, "data": None, "steps": None, "passes": 2},
    "`optimizer: {name: schedule_free}`, `decay: cosine`": {"optimizer": {"name": "schedule_free"}, "decay": "cosine"},
    "`optimizer: {name: prodigy}`, a rule with `learning_rate`": {
        "optimizer": {"name": "prodigy"},
        **unet(train={"rules": [{"match": "attn1", "learning_rate": 1e-5}]}),
    },
    "`evaluate` without `objective.validation`": {"evaluate": {}},
    "`objective: {name: unet}`, `memory: {base: int8}`": {"memory": {"base": "int8"}},
    "`objective: {name: clip}`, `memory: {drop_encoders: true}`": {
        "objective": CLIP,
        "memory": {"drop_encoders": True},
    },
    "`objective: {name: autoencoder}`, `sample: {prompts: [a cat]}`": {
        **autoencoder(),
        "sample": {"prompts": ["a cat"]},
    },
    "`sample: {prompts: [a [cat\\|dog]]}`": {"sample": {"prompts": ["a [cat|dog]"]}},
    "`memory: {weights: bfloat16}`, `precision: float32`": {"memory": {"weights": "bfloat16"}},
    "`memory: {weights: bfloat16}`, `ema`": {"memory": {"weights": "bfloat16"}, "precision": "bfloat16", "ema": {}},
    "`memory: {weights: bfloat16}`, `optimizer: {name: schedule_free}`": {
        "memory": {"weights": "bfloat16"},
        "precision": "bfloat16",
        "optimizer": {"name": "schedule_free"},
    },
    "`memory: {update_in_backward: true}`, `clip_norm: 1`": {"memory": {"update_in_backward": True}},
    "`memory: {update_in_backward: true}`, `accumulation: 2`": {
        "memory": {"update_in_backward": True},
        "clip_norm": None,
        "accumulation": 2,
    },
    "`memory: {update_in_backward: true}`, `optimizer: {name: prodigy}`": {
        "memory": {"update_in_backward": True},
        "clip_norm": None,
        "optimizer": {"name": "prodigy"},
    },
    "`memory: {drop_encoders: true}`, a trained text encoder": {
        **adapter(layers=["to_v", "v_proj"], parts=["unet", "text_encoder"]),
        "memory": {"drop_encoders": True},
    },
    "`memory: {drop_encoders: true}`, `inpainting`": {**unet(inpainting={}), "memory": {"drop_encoders": True}},
    "`memory: {drop_encoders: true}`, `data.fit: random_crop`": {
        "data": {"fit": "random_crop"},
        "memory": {"drop_encoders": True},
    },
    "`memory: {drop_encoders: true}`, `text_cache_bytes: 0`": {
        **unet(text_cache_bytes=0),
        "memory": {"drop_encoders": True},
    },
    "`memory: {drop_encoders: true}`, `name: concepts` with a trained text encoder": {
        "objective": CONCEPTS | {"adapter": {"layers": ["v_proj"], "parts": ["text_encoder"], "rank": 1}},
        "data": None,
        "memory": {"drop_encoders": True},
    },
    "`init`, `parts`": unet(parts=PARTS),
    "`name: concepts` without `init`": {
        "objective": CONCEPTS | {"init": None, "parts": PARTS, "unet": "tiny"},
        "data": None,
    },
    "`name: consistency` without `init`": {"objective": CONSISTENCY | {"init": None}},
    "`name: consistency`, `target: average` without `ema`": {"objective": CONSISTENCY | {"target": "average"}},
    "`name: consistency`, `memory: {base: int8}` without `adapter`": {
        "objective": CONSISTENCY,
        "memory": {"base": "int8"},
    },
    "`name: consistency`, a model that repaints": {"objective": CONSISTENCY | {"init": "REPAINTS"}},
    "`name: consistency`, a rectified flow": {"objective": CONSISTENCY | {"init": "FLOW"}},
    "`name: consistency`, `adapter: {parts: [unet, text_encoder]}`": {
        "objective": CONSISTENCY | {"adapter": {"parts": ["unet", "text_encoder"]}}
    },
    "`name: distribution_matching`, `data.flip: true`": {
        "objective": MATCHING,
        "data": PICTURES | {"flip": True},
    },
    "`name: distribution_matching`, `adapter: {parts: [unet, text_encoder]}`": {
        "objective": MATCHING | {"adapter": {"parts": ["unet", "text_encoder"]}}
    },
    "`name: learned_variance`, `offset_noise: 0.1`": {"objective": VARIANCE | {"offset_noise": 0.1}},
    "`name: learned_variance`, `times: {low: 0.5}`": {"objective": VARIANCE | {"times": {"low": 0.5}}},
    "`name: learned_variance`, `times: {law: logit_normal}`": {
        "objective": VARIANCE | {"times": {"law": "logit_normal"}}
    },
    "`name: learned_variance`, `scheduler: {_class_name: DDIMScheduler}`": {
        "objective": VARIANCE | {"scheduler": {"_class_name": "DDIMScheduler"}}
    },
    "`name: learned_variance`, `levels: 1001` of 1000": {"objective": VARIANCE | {"levels": 1001}},
    "`name: learned_variance`, a rectified flow": {"objective": VARIANCE | {"init": "FLOW"}},
    "`name: unet`, a model with a learned variance": unet(init="LEARNED"),
    "`name: learned_schedule` without `init`": {"objective": SCHEDULE | {"init": None, "parts": PARTS, "unet": "tiny"}},
    "`name: learned_schedule`, a model that ends on pure noise": {
        "objective": SCHEDULE | {"scheduler": ZERO_SNR | {"prediction_type": "v_prediction"}}
    },
    "`name: reflow` without `init`": reflow(init=None, parts=PARTS, unet="tiny"),
    "`name: reflow`, `train: {parts: [unet, text_encoder]}`": reflow(train={"parts": ["unet", "text_encoder"]}),
    "`name: reflow`, `offset_noise: 0.1`": reflow(offset_noise=0.1),
    "`name: reflow`, `data.captions: [text, text_alt]`": reflow(data={"captions": ["text", "text_alt"]}),
    "`name: reflow`, `data.flip: true`": reflow(data={"flip": True}),
    "`name: reflow`, `data.buckets`": reflow(data={"buckets": {"step": 16, "min_side": 16}}),
    "`name: reflow`, `memory: {weights: bfloat16}`": {
        **reflow(),
        "memory": {"weights": "bfloat16"},
        "precision": "bfloat16",
    },
    "`name: bridge`, `data.flip: true`": bridge(data={"flip": True}),
    "`name: bridge`, `data.buckets`": bridge(data={"buckets": {"step": 16, "min_side": 16}}),
    "`name: bridge`, `partner: channels`, `sample`": {
        **bridge(partner="channels"),
        "sample": {"prompts": ["a red disc"]},
    },
    "`name: bridge`, `partner: channels`, `train: {layers: cross_attention}`": bridge(
        partner="channels", train={"layers": "cross_attention"}
    ),
    "`name: bridge`, `latent_cache_bytes: 0`": bridge(latent_cache_bytes=0),
    "`name: plane`, `gan` with another process": {"objective": {"name": "plane", "gan": {}}, "data": POINTS},
    "`name: plane`, `latent.stage: joint` without `latent.init`": {
        "objective": {"name": "plane", "process": "latent", "latent": {"stage": "joint"}},
        "data": POINTS,
    },
    "`name: plane`, `latent.init` of another width": {
        "objective": {"name": "plane", "process": "latent", "latent": {"stage": "joint", "init": "LATENT"}},
        "data": POINTS,
    },
    "`name: plane`, `gradient_checkpointing: true`": {
        "objective": {"name": "plane"},
        "data": POINTS,
        "gradient_checkpointing": True,
    },
    "`name: classifier`, `gradient_checkpointing: true`": {
        "objective": CLASSIFIER,
        "data": ALONE,
        "gradient_checkpointing": True,
    },
    "`name: latent_clip`, `gradient_checkpointing: true`": {"objective": LATENT_CLIP, "gradient_checkpointing": True},
    "`name: latent_clip`, `data.captions: []`": {"objective": LATENT_CLIP, "data": ALONE},
    "`init`, `unet`": unet(unet="sd1"),
    "`unet: sd1`, a text encoder of width 32": unet(init=None, parts=PARTS, unet="sd1"),
    "`unet: {added_width: 100}`, a text encoder without pooled text": unet(
        init=None, parts=PARTS, unet=SIZES | {"added_width": 100, "size_width": 8}
    ),
    "`unet: {in_channels: 5}`, latents of 4 channels": unet(init=None, parts=PARTS, unet=SIZES | {"in_channels": 5}),
    "`data.size: 34`, an autoencoder of 1/4": {"data": {"size": 34}},
    "`name: autoencoder`, `data.size: 33`, an autoencoder of 1/2": autoencoder(data={"size": 33}),
    "`data.buckets: {step: 6}`, an autoencoder of 1/4": {"data": {"buckets": {"step": 6, "min_side": 6}}},
    "`data.buckets: {step: 64}`, `data.size: 32`": {"data": {"buckets": {"step": 64}}},
    "`scheduler: {rescale_betas_zero_snr: true}`, a model with PNDM": unet(
        init=None, parts=PARTS, unet="sd1", scheduler=ZERO_SNR
    ),
    "epsilon, zero terminal SNR": unet(scheduler=ZERO_SNR),
    "`inpainting`, `train: {layers: cross_attention}`, a model that reads no mask": unet(
        inpainting={}, train={"layers": "cross_attention"}
    ),
    "`weighting: simple`, `gamma: 5`": unet(gamma=5.0),
    "`weighting: min_snr`, `k: 1`": unet(weighting="min_snr", k=1.0),
    "`weighting: bound`, `huber: 0.1`": unet(weighting="bound", huber=0.1),
    "`times: {law: uniform, mean: 1}`": unet(times={"mean": 1.0}),
    "`times: {law: importance, std: 2}`": unet(times={"law": "importance", "std": 2.0}),
    "`times: {low: 0.5, high: 0.5}`": unet(times={"low": 0.5, "high": 0.5}),
    "`times: {law: logit_normal, mean: 50, high: 0.5}`": unet(times=NO_TIME),
    "`name: textual_inversion`, `inpainting`, a model that reads no mask": {
        "objective": INVERSION | {"inpainting": {}}
    },
    "`name: lora`, `inpainting`, `adapter: {parts: [text_encoder]}`": lora(
        inpainting={}, adapter={"parts": ["text_encoder"]}
    ),
    "`name: lora`, `inpainting`, `adapter: {start: a file for drawing}`": lora(
        inpainting={}, adapter={"start": "ADAPTER"}
    ),
    "`name: unet`, `masked: {prior: 0.5}`": {**unet(masked={"prior": 0.5}), "data": {"path": "MASKED"}},
    "`train: {parts: [text_encoder_2]}`, a model with one": unet(train={"parts": ["text_encoder_2"]}),
    "`train: {parts: [text_encoder], layers: [attn1]}`": unet(train={"parts": ["text_encoder"], "layers": ["attn1"]}),
    "`train: {layers: cross_attention}`, a rule for `attn1`": unet(
        train={"layers": "cross_attention", "rules": [{"match": "attn1", "learning_rate": 1e-5}]}
    ),
    "a rule for all weights with `until: 0.5`": unet(train={"rules": [{"match": ".", "until": 0.5}]}),
    "`adapter: {form: lora, factor: 4}`": adapter(factor=4),
    "`adapter: {parts: [text_encoder_2]}`, a model with one": adapter(parts=["text_encoder_2"]),
    "`adapter: {parts: [text_encoder], layers: [attn2]}`": adapter(parts=["text_encoder"], layers=["attn2"]),
    "`adapter: {layers: [attn2]}`, a rule with `rank: 0` for all of it": adapter(rules=[{"match": "attn2", "rank": 0}]),
    "`adapter: {layers: [attn2]}`, a rule for `attn1`": adapter(rules=[{"match": "attn1", "rank": 2}]),
    "`adapter: {start: a file of rank 2, rank: 4}`": lora(adapter={"start": "ADAPTER", "rank": 4}),
    "`words_learning_rate` without `words`": lora(words_learning_rate=1e-3),
    "`words` of which no caption has one": lora(words=[{"token": "sks", "start": "sun"}]),
    "`words: [{start: red apple, vectors: 1}]`": lora(words=[{"token": "disc", "start": "red apple", "vectors": 1}]),
    "`words` with one token twice": lora(words=[*WORDS, *WORDS]),
    "`name: autoencoder`, `model`, `init`": autoencoder(init="MODEL"),
    "`name: autoencoder`, `train: decoder`, `model`": autoencoder(train="decoder"),
    "`name: autoencoder`, `train: decoder`, `kl: 1`": autoencoder(model=None, init="MODEL", train="decoder", kl=1.0),
    "`equivariance: 0.5`, `adversarial: {start: 0}`": autoencoder(equivariance=0.5, adversarial={"start": 0}),
    "`name: autoencoder`, quant convolutions left out": autoencoder(model=VAE | {"use_quant_conv": False}),
    "`name: autoencoder`, `data.buckets`": autoencoder(data={"buckets": {}}),
    "`name: autoencoder`, `data.loss_weight: 2`": autoencoder(data={"loss_weight": 2.0}),
    "`name: autoencoder`, `data.caption_dropout: 0.1`": autoencoder(data={"caption_dropout": 0.1}),
    "`name: clip`, `init`, `embed_dim`": clip(init="MODEL"),
    "`name: clip`, neither `init` nor `text` and `vision`": clip(text=None),
    "`name: clip`, `text: {width: 9, heads: 2}`": clip(text={"width": 9, "layers": 1, "heads": 2}),
    "`name: clip`, `patch_size: 24`, `data.size: 32`": clip(patch_size=24),
    "`name: clip`, `data.captions: []`": clip(data=ALONE),
    "`data: {path, sources}`": {"data": {"sources": [{"path": "PICTURES"}]}},
    "`data: {check: none, on_bad: skip}`": {"data": {"check": "none", "on_bad": "skip"}},
    "`data.sources` with a `size` without `data.buckets`": {
        "data": {"path": None, "sources": [{"path": "PICTURES", "size": 64}]}
    },
    "`data.sources`, all of them `regularisation`": {"data": {"regularisation": True}},
    "`data: {captions: {text: 0}}`": {"data": {"captions": {"text": 0.0}}},
    "`data.sources`, all with `loss_weight: 0`": {"data": {"loss_weight": 0.0}},
    "`data: {composed: {}, check: all}`": {"data": {"composed": {}}},
    "`data: {composed: {}, flip: true}`": {"data": {"composed": {}, "check": "none", "flip": True}},
    "`data: {composed: {}, buckets: {}}`": {"data": {"composed": {}, "check": "none", "buckets": {}}},
    "`data: {composed: {}}`, `objective.validation: 0.1`": {
        "data": {"composed": {}, "check": "none"},
        **unet(validation=0.1),
    },
    "`data.picture` with a folder of pictures": {"data": {"picture": "image"}},
}
"""What a run on six pictures of 32 px and a model for tests is changed to."""

OTHERS = {
    "data/opening.py _chosen": "a field that no picture has",
    "data/settings.py _some_share": "numbers that are none",
    "training/objectives/clip.py _check_false": "a field that no picture has",
    "data/settings.py _of_share": "a share that is none",
    "diffusion/loss.py __post_init__": "unknown names and numbers out of range, in Python",
    "diffusion/time_law.py __post_init__": "unknown names and numbers out of range, in Python",
    "config.py _only_numbers_for_numbers": "a value of another type",
    "config.py _consistent": "no name of an objective",
    "config.py read_config": "a file that cannot be read",
    "config.py _parse_yaml": "a file that is no YAML",
    "config.py _override": "an override that is none",
    "config.py _refuse": "a value out of its range",
    "training/networks/parts.py build_parts": "a model that is not trained",
    "training/networks/parts.py _sizes": "sizes that are none",
    "training/networks/weight_rules.py _compiles": "a pattern that is none",
    "training/networks/weight_rules.py _once": "one name twice",
    "training/monitoring/trackers.py __init__": "a package that is not installed",
    "training/optimizer.py _betas": "a number out of range",
    "training/optimizer.py need_package": "a package that is not installed",
    "training/numbers.py sample_numbers": "a number of processes",
    "training/run.py train": "what a folder holds already",
    "training/state/saving.py refuse_drift": "what a folder holds already",
    "training/state/run_folder.py _make": "what a folder holds already",
    "training/state/launch.py build_accelerator": "a way to launch",
    "training/fsdp.py check_sharding": "a way to launch",
    "training/adapters/learned_words.py _names_a_file": "a word that is none",
    "training/adapters/started_adapter.py _described": "what an adapter's file holds",
    "training/adapters/started_adapter.py _fill": "what an adapter's file holds",
    "training/adapters/adapter_layers.py _consistent": "one name twice",
    "training/objectives/autoencoder.py _autoencoder": "sizes that are none",
    "training/objectives/clip.py _published": "a model of another size",
}
"""Refusals that are no combination of settings, by file and function, and what they are."""

SOURCES = [
    *sorted(PACKAGE.glob("training/**/*.py")),
    *(PACKAGE / name for name in ("config.py", "data/settings.py", "data/opening.py")),
    *(PACKAGE / "diffusion" / name for name in ("loss.py", "time_law.py")),
]
"""Where settings are refused."""


@pytest.fixture(scope="module")
def places(tiny_folder, pictures, tmp_path_factory) -> dict[str, str]:
    """What the names in capitals above stand for."""
    from PIL import Image

    root = tmp_path_factory.mktemp("refused")
    row = {"file_name": "0.png", "mask_file": "0.mask.png", "text": "a disc"}
    (root / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    Image.new("RGB", (32, 32), "red").save(root / "0.png")
    Image.new("L", (32, 32), 255).save(root / "0.mask.png")
    found = {"MODEL": str(tiny_folder), "PICTURES": str(pictures), "MASKED": str(root)}
    (root / "out").mkdir()
    objective = build_objective(parsed({**adapter(rank=2), "output": str(root / "out" / "a")}, found))
    objective.export(root / "out", averaged=False)
    (root / "sd-inpaint").mkdir()
    build_objective(parsed(unet(inpainting={}), found)).export(root / "sd-inpaint", averaged=False)
    (root / "learned").mkdir()
    build_objective(parsed({"objective": VARIANCE}, found)).export(root / "learned", averaged=False)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    flow = replace(load_folder(tiny_folder), schedule=RectifiedFlow(), prediction=FLOW, scheduler_config=config)
    save_folder(flow, root / "flow")
    latent = tmp_path_factory.mktemp("latent")
    points = {"objective": {"name": "plane", "process": "latent", "width": 8, "layers": 1}, "data": POINTS}
    build_objective(parsed(points, found)).export(latent, averaged=False)
    found |= {"LEARNED": str(root / "learned"), "FLOW": str(root / "flow"), "LATENT": str(latent)}
    return found | {"ADAPTER": str(root / "out" / "a.safetensors"), "REPAINTS": str(root / "sd-inpaint")}


def parsed(changes: dict[str, Any], places: dict[str, str]) -> RunConfig:
    data = PICTURES | (changes.get("data") or {}) if changes.get("data", {}) is not None else {"size": 32}
    data = {} if changes.get("data") is POINTS else data
    values = {"output": "x", "objective": UNET, "batch_size": 2, "steps": 2, "trackers": [], "threads": 1}
    text = json.dumps({**values, **copy.deepcopy(changes), "data": data})
    for name, place in places.items():
        text = text.replace(name, place)
    return parse_section(RunConfig, json.loads(text), "run")


def refusal(changes: dict[str, Any], places: dict[str, str]) -> ConfigError | None:
    """Go on as a run does until it is refused; return by what."""
    try:
        run = parsed(changes, places)
        objective = build_objective(run)
        run = with_steps(run, objective)
        Trainer(objective, run, Accelerator(cpu=True))
        objective.export(Path(places["MASKED"]) / "out", averaged=False)
    except ConfigError as fault:
        return fault
    return None


def frames(fault: BaseException | None) -> Iterator[tuple[str, int]]:
    """Yield file and line at which a fault was raised, and those of the faults that it stands for."""
    while fault is not None:
        trace: TracebackType | None = fault.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None:
            yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if isinstance(fault, ValidationError):
            for error in fault.errors():
                yield from frames(error.get("ctx", {}).get("error"))
        fault = fault.__context__


def sites() -> dict[tuple[str, int], tuple[str, int]]:
    """Every line of a statement that refuses settings, with "file function" and its first line."""
    found = {}
    for file in SOURCES:
        tree = ast.parse(file.read_text("utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for node in (node for node in ast.walk(function) if isinstance(node, ast.Raise)):
                if isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ("ConfigError", "ValueError"):
                    for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                        place = f"{file.relative_to(PACKAGE).as_posix()} {function.name}"
                        found[str(file), line] = (place, node.lineno)
    return found


def test_every_combination_is_refused_and_the_page_has_its_reason(places, models_read_once):
    refusals = {settings: refusal(changes, places) for settings, changes in COMBINATIONS.items()}
    assert [settings for settings, fault in refusals.items() if fault is None] == []
    rows = []
    for settings, fault in refusals.items():
        answer = str(fault)
        for name, place in places.items():
            answer = answer.replace(place, name)
        assert "\n" not in answer
        rows.append(f"| {settings} | " + answer.replace("|", "\\|") + " |")
    made = "\n".join(["| settings | answer |", "|---|---|", *rows]) + "\n"
    text = PAGE.read_text("utf-8")
    known = sites()
    reached = {known.get(place) for fault in refusals.values() for place in frames(fault)}
    left = {statement for statement in known.values() if statement not in reached}
    assert {name for name, _ in left} == OTHERS.keys(), sorted({one for one in left if one[0] not in OTHERS})
    assert START in text and text.partition(START)[2].partition(END)[0] == made, made
