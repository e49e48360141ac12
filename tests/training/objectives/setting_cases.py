"""For every setting of every schema a change that must show: the table of `test_every_setting_changes_a_run.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """Another value of one setting.

    Attributes:
        value: what it becomes.
        beside: other settings, by their path, that both runs have; and how the two are compared: `like` another base,
            `export` what is written, run `again` in the same folder with changes.
        refused: words of the message by which one of the two runs, and only that one, is refused.
    """

    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Section:
    """Settings of one class: the run in which they are changed, the path before their names, and the changes."""

    base: str
    prefix: str
    changes: dict[str, Change | Any]


def bases(tiny: Path, places: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the runs that are changed, by name; `places` are the folders of `folders`."""
    run = {"output": places["output"], "steps": 1, "batch_size": 2, "threads": 1, "trackers": []}
    pictures = {"path": places["pictures"], "size": 32, "where": {"split": "train"}}
    adapter = {"rank": 2, "layers": ["attn2.to_v"]}
    tower = {"width": 8, "layers": 1, "heads": 2}
    sizes = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8}
    return {
        "toy": {**run, "objective": {"name": "toy"}, "data": {}, "steps": 6, "batch_size": 4, "log_every": 2},
        "data": pictures | {"where": {}},
        "sources": {"size": 32, "sources": [{"path": places["pictures"]}, {"path": places["large"]}]},
        "unet": {**run, "objective": {"name": "unet", "init": str(tiny)}, "data": pictures},
        "lora": {**run, "objective": {"name": "lora", "init": str(tiny), "adapter": adapter}, "data": pictures},
        "consistency": {**run, "objective": {"name": "consistency", "init": str(tiny)}, "data": pictures},
        "progressive": {**run, "objective": {"name": "progressive", "init": str(tiny)}, "data": pictures},
        "distribution_matching": {
            **run,
            "objective": {"name": "distribution_matching", "init": str(tiny)},
            "data": pictures,
        },
        "learned_schedule": {**run, "objective": {"name": "learned_schedule", "init": str(tiny)}, "data": pictures},
        "learned_variance": {**run, "objective": {"name": "learned_variance", "init": str(tiny)}, "data": pictures},
        "reflow": {
            **run,
            "objective": {"name": "reflow", "init": str(tiny), "pairs": {"steps": 2}},
            "data": pictures | {"captions": ["text"]},
        },
        "bridge": {
            **run,
            "objective": {"name": "bridge", "init": str(tiny), "start": {"split": "val"}, "match": "turn"},
            "data": pictures,
        },
        "textual_inversion": {
            **run,
            "objective": {
                "name": "textual_inversion",
                "init": str(tiny),
                "words": [{"token": "disc", "start": "sun"}],
            },
            "data": pictures,
        },
        "concepts": {
            **run,
            "objective": {
                "name": "concepts",
                "init": str(tiny),
                "adapter": adapter,
                "draw_steps": 2,
                "concepts": [{"prompt": "a red disc", "toward": "a cat"}],
            },
            "data": {"size": 32},
        },
        "autoencoder": {
            **run,
            "objective": {"name": "autoencoder", "model": sizes, "perceptual": 0.0},
            "data": pictures | {"captions": []},
        },
        "classifier": {
            **run,
            "objective": {
                "name": "classifier",
                "model": str(tiny),
                "fields": ["turn"],
                "channels": [8, 16],
                "groups": 4,
            },
            "data": pictures | {"captions": []},
        },
        "latent_clip": {
            **run,
            "objective": {
                "name": "latent_clip",
                "model": str(tiny),
                "embed_dim": 8,
                "channels": [8, 16],
                "groups": 4,
            },
            "data": pictures,
        },
        "plane": {**run, "objective": {"name": "plane", "width": 8, "layers": 1}, "data": {}},
        "clip": {
            **run,
            "objective": {
                "name": "clip",
                "embed_dim": 8,
                "patch_size": 16,
                "vocab_size": 600,
                "text": tower,
                "vision": tower,
            },
            "data": pictures,
        },
    }


def sections(tiny: Path, other: Path, places: dict[str, str]) -> dict[str, Section]:
    """Return the changes of every class of settings, by its name.

    Args:
        tiny: a model's folder.
        other: another model's.
        places: more folders and files: see `places` in the test.
    """
    from_scratch = {
        "objective.init": None,
        "objective.parts": {"vae": str(tiny / "vae"), "text_encoder": str(tiny)},
        "objective.unet": "tiny",
    }
    small = {"block_out_channels": [16, 16], "layers_per_block": 1, "cross_attention": [True, True]}
    small |= {"num_attention_heads": [2, 2], "cross_attention_dim": 32, "norm_num_groups": 8, "sample_size": 8}
    masked = {"data.path": places["masked"], "objective.masked": {}}
    tags = {"captions": ["tags"]}
    preserved = {"steps": 2, "objective.preserve": {"replace": {"disc": "car"}}}  # no distance to the base at first
    composed = {"path": places["things"], "check": "none", "composed": {"rows": 20, "shares": {"colour": 1.0}}}
    cache = {"folder": places["output"] + "-cache"}
    buckets = {"size": 64, "buckets": {"step": 16, "min_side": 16}}
    draws = {"sample": {"every": 1, "steps": 2, "prompts": ["a cat"]}}
    held = {"objective.held_out": True, "evaluate": {"every": 2}, "optimizer.learning_rate": 1.0}
    again = {"again": {}}
    decoder = {"objective.model": None, "objective.init": str(tiny)}
    plays = {"objective.adversarial": {"start": 0, "width": 8, "layers": 1}}
    whole = {"objective.inpainting": {"whole": 1.0}}
    drawn = {"objective.inpainting": {"whole": 0.0}}
    gan, latent = {"objective.process": "gan"}, {"objective.process": "latent"}
    loss = {
        "weighting": "p2",
        "gamma": Change(1.0, {"objective.weighting": "min_snr"}),
        "k": Change(3.0, {"objective.weighting": "p2"}),
        "huber": 0.1,
        "times": {"low": 0.5},
        "stratified": False,
        "offset_noise": 0.1,
        "input_perturbation": 0.1,
    }
    model = {
        "init": str(other),
        "parts": Change({"vae": str(other / "vae"), "text_encoder": str(other)}, from_scratch),
        "unet": Change(small, from_scratch),
        "scheduler": {"beta_end": 0.02},
    }
    return {
        "RunConfig": Section(
            "toy",
            "",
            {
                "output": places["output"] + "-elsewhere",
                "objective": {"name": "toy", "opponent_start": 1},
                "data": {"count": 3},
                "seed": 1,
                "steps": 4,
                "passes": Change(3.0, {"steps": None, "passes": 1.0}),
                "batch_size": 2,
                "accumulation": 2,
                "precision": "bfloat16",
                "optimizer": {"learning_rate": 1e-2},
                "warmup": 4,
                "decay": "cosine",
                "clip_norm": 1e-3,
                "ema": {},
                "checkpoint": {"every": 2},
                "log_every": 3,
                "evaluate": Change({"every": 3}, {"objective.held_out": True}),
                "trackers": ["tensorboard"],
                "sample": {"every": 3},
                "gradient_checkpointing": Change(True, {"like": "unet"}),
                "memory": Change({"base": "int8"}, {"like": "lora"}),
                "fast": False,
                "threads": 2,
                "resume": Change("never", again, "resume: never"),
                "allow_drift": Change(True, {"again": {"clip_norm": 2.0, "steps": 8}}, "another configuration"),
            },
        ),
        "EmaConfig": Section("toy", "ema.", {"decay": Change(0.5, {"ema.warmup": 1.0}), "warmup": 2.0}),
        "CheckpointConfig": Section("toy", "checkpoint.", {"every": 3, "keep": Change(1, {"checkpoint.every": 2})}),
        "EvaluateConfig": Section(
            "toy", "evaluate.", {"every": Change(3, held), "patience": Change(1, held | {"steps": 12})}
        ),
        "SampleConfig": Section(
            "lora",
            "sample.",
            {
                "every": Change(2, {"like": "toy"}),
                "prompts": Change(["a blue car"], draws),
                "steps": Change(1, draws),
                "guidance_scale": Change(1.0, draws),
                "seed": Change(1, draws),
            },
        ),
        "MemoryConfig": Section(
            "lora",
            "memory.",
            {
                "base": "bfloat16",
                "base_on_host": True,
                "weights": Change("bfloat16", {"like": "unet", "precision": "bfloat16"}),
                "update_in_backward": Change(True, {"like": "unet"}, "clip_norm 1.0"),
                "drop_encoders": True,
            },
        ),
        "UNetSettings": Section(
            "unet",
            "objective.",
            {
                **loss,
                **model,
                "latent_cache_bytes": 0,
                "text_cache_bytes": 0,
                "caption_chunks": Change(1, {"data.wording.suffix": "a red car " * 40}),
                "export_dtype": Change("float16", {"export": True}),
                "validation": {"split": "val"},
                "workers": 0,
                "masked": Change({}, {"data.path": places["masked"]}),
                "inpainting": {},
                "train": {"layers": "cross_attention"},
            },
        ),
        "TimesSettings": Section(
            "unet",
            "objective.times.",
            {
                "law": "logit_normal",
                "mean": Change(1.0, {"objective.times.law": "logit_normal"}),
                "std": Change(0.1, {"objective.times.law": "logit_normal"}),
                "low": 0.5,
                "high": 0.5,
            },
        ),
        "Parts": Section(
            "unet",
            "objective.parts.",
            {"vae": Change(str(other / "vae"), from_scratch), "text_encoder": Change(str(other), from_scratch)},
        ),
        "MaskedSettings": Section(
            "lora",
            "objective.masked.",
            {"source": Change("alpha", masked), "outside": Change(0.5, masked), "prior": Change(0.5, masked)},
        ),
        "InpaintingSettings": Section(
            "unet",
            "objective.inpainting.",
            {
                "shapes": Change(["border"], drawn),
                "whole": Change(0.0, whole),
                "own": Change(1.0, drawn | {"data.path": places["masked"]}),
            },
        ),
        "TrainSettings": Section(
            "unet",
            "objective.train.",
            {
                "parts": ["unet", "text_encoder"],
                "layers": ["attn1"],
                "rules": [{"match": "attn1", "learning_rate": 1e-6}],
            },
        ),
        "WeightRule": Section(
            "unet",
            "objective.train.rules.0.",
            {
                "match": Change("attn2", {"objective.train.rules": [{"match": "attn1", "learning_rate": 1e-6}]}),
                "learning_rate": Change(1e-6, {"objective.train.rules": [{"match": "attn1"}]}),
                "until": Change(0.5, {"steps": 2, "objective.train.rules": [{"match": "attn1"}]}),
            },
        ),
        "LoraSettings": Section(
            "lora",
            "objective.",
            {
                "preserve": {"replace": {"disc": "car"}},
                "adapter": {"rank": 2, "layers": ["attn1.to_v"]},
                "words": [{"token": "disc", "start": "sun"}],
                "words_learning_rate": Change(1e-3, {"objective.words": [{"token": "disc", "start": "sun"}]}),
            },
        ),
        "ConsistencySettings": Section(
            "consistency",
            "objective.",
            {
                "guidance_scale": 1.0,
                "teacher_steps": 20,
                "target": Change("student", {"steps": 2, "ema": {"warmup": 100.0}}),
                "adapter": {"rank": 2, "layers": ["attn1.to_v"]},
            },
        ),
        "ProgressiveSettings": Section("progressive", "objective.", {"steps": 4}),
        "DistributionMatchingSettings": Section(
            "distribution_matching",
            "objective.",
            {
                "steps": Change(1, {"steps": 2, "objective.fake_updates": 1}),
                "fake_updates": Change(1, {"steps": 2}),
            },
        ),
        "LearnedScheduleSettings": Section("learned_schedule", "objective.", {"width": 8}),
        "LearnedVarianceSettings": Section("learned_variance", "objective.", {"bound_weight": 1.0, "levels": 10}),
        "ReflowSettings": Section("reflow", "objective.", {"pairs": {"steps": 3}}),
        "PairSettings": Section(
            "reflow",
            "objective.pairs.",
            {
                "folder": places["output"] + "-pairs",
                "per_picture": 2,
                "steps": 3,
                "guidance_scale": 2.0,
            },
        ),
        "BridgeSettings": Section(
            "bridge",
            "objective.",
            {
                "start": {"text": "a purple disc"},
                "partner": "channels",
                "match": Change("text", refused="shares its"),
            },
        ),
        "PlaneSettings": Section(
            "plane",
            "objective.",
            {
                "process": "damped",
                "width": 16,
                "layers": 2,
                "gan": Change({"steps": 2}, {"objective.process": "gan"}),
                "latent": Change({"mix": 0.2}, {"objective.process": "latent", "export": True}),
            },
        ),
        "LatentSettings": Section(
            "plane",
            "objective.latent.",
            {
                "stage": Change("joint", latent, "go on from the folder"),
                "init": Change("elsewhere", latent, "go on from the folder"),
                "mix": Change(0.2, latent | {"export": True}),
            },
        ),
        "GanSettings": Section(
            "plane",
            "objective.gan.",
            {
                "steps": Change(2, gan),
                "latents": Change(3, gan),
                "r1": Change(1.0, gan),
                "r1_every": Change(4, gan),
            },
        ),
        "PlanePoints": Section("plane", "data.", {"side": 3, "distance": 1.0, "spread": 0.1}),
        "PreserveSettings": Section(
            "lora",
            "objective.preserve.",
            {
                "replace": Change({"disc": "cat"}, preserved),
                "weight": Change(2.0, preserved),
            },
        ),
        "AdapterSettings": Section(
            "lora",
            "objective.adapter.",
            {
                "start": Change(places["start"], {"objective.adapter": {}}),
                "form": "loha",
                "rank": 1,
                "alpha": 1.0,
                "rank_stabilised": True,
                "dora": True,
                "factor": Change(2, {"objective.adapter.form": "lokr"}),
                "layers": ["attn1.to_v"],
                "parts": Change(["text_encoder"], {"objective.adapter.layers": "attention"}),
                "rules": [{"match": "mid_block", "rank": 0}],
            },
        ),
        "Rule": Section(
            "lora",
            "objective.adapter.rules.0.",
            {
                "match": Change("up_blocks", {"objective.adapter.rules": [{"match": "mid_block", "rank": 0}]}),
                "rank": Change(1, {"objective.adapter.rules": [{"match": "mid_block"}]}),
                "alpha": Change(1.0, {"objective.adapter.rules": [{"match": "mid_block"}]}),
                "learning_rate": Change(1e-6, {"objective.adapter.rules": [{"match": "mid_block"}]}),
                "until": Change(0.5, {"steps": 2, "objective.adapter.rules": [{"match": "mid_block"}]}),
            },
        ),
        "TextualInversionSettings": Section(
            "textual_inversion",
            "objective.",
            {"preserve": {"replace": {"disc": "car"}}, "words": [{"token": "disc", "start": "cat"}]},
        ),
        "WordSettings": Section(
            "textual_inversion",
            "objective.words.0.",
            {"token": Change("red", {"export": True}), "start": "cat", "vectors": 2},
        ),
        "ConceptsSettings": Section(
            "concepts",
            "objective.",
            {
                **model,
                "parts": Change({"vae": str(tiny / "vae"), "text_encoder": str(tiny)}, refused="give either `init`"),
                "unet": Change("tiny", refused="those of `init`"),
                "draw_steps": 3,
                "draw_guidance_scale": 1.0,
                "concepts": [{"prompt": "a cat", "toward": "a red disc"}],
                "adapter": {"rank": 1, "layers": ["attn2.to_v"]},
                "export_dtype": Change("float16", {"export": True}),
            },
        ),
        "ConceptSettings": Section(
            "concepts",
            "objective.concepts.0.",
            {"prompt": "a blue car", "toward": "a sun", "away": "a sun", "anchor": "a sun", "strength": 2.0},
        ),
        "PromptsConfig": Section("concepts", "data.", {"size": 64}),
        "AutoencoderSettings": Section(
            "autoencoder",
            "objective.",
            {
                "model": {
                    "block_out_channels": [8, 8],
                    "layers_per_block": 1,
                    "latent_channels": 4,
                    "norm_num_groups": 8,
                },
                "init": Change(str(other), decoder),
                "train": Change("decoder", decoder),
                "l1": 0.5,
                "mse": 1.0,
                "perceptual": 0.1,
                "kl": 1.0,
                "equivariance": 1.0,
                "adversarial": {"start": 0, "width": 8, "layers": 1},
                "scale_pictures": Change(1, {"export": True}),
                "validation": {"split": "val"},
                "workers": 0,
            },
        ),
        "Adversarial": Section(
            "autoencoder",
            "objective.adversarial.",
            {
                "start": Change(1, plays),
                "weight": Change(1.0, plays),
                "largest": Change(1e-3, plays),
                "width": Change(16, plays),
                "layers": Change(2, plays),
            },
        ),
        "ClassifierSettings": Section(
            "classifier",
            "objective.",
            {
                "model": str(other),
                "fields": ["text"],
                "channels": [8],
                "blocks": 2,
                "groups": 2,
                "times": {"high": 0.1},
                "validation": {"split": "val"},
                "workers": 0,
            },
        ),
        "LatentCLIPSettings": Section(
            "latent_clip",
            "objective.",
            {
                "model": str(other),
                "embed_dim": 4,
                "channels": [8],
                "blocks": 2,
                "groups": 2,
                "times": {"high": 0.1},
                "validation": {"split": "val"},
                "workers": 0,
            },
        ),
        "CLIPSettings": Section(
            "clip",
            "objective.",
            {
                "init": Change(str(other), refused="sizes and vocabulary are those of `init`"),
                "text": {"width": 16, "layers": 1, "heads": 2},
                "vision": {"width": 16, "layers": 1, "heads": 2},
                "embed_dim": 4,
                "patch_size": 8,
                "context_length": 3,
                "quick_gelu": True,
                "vocab_size": 520,
                "vocabulary_fields": ["text_alt"],
                "false_captions": "text_alt",
                "validation": {"split": "val"},
                "workers": 0,
            },
        ),
        "Tower": Section("clip", "objective.text.", {"width": 16, "layers": 2, "heads": 1, "mlp_ratio": 2.0}),
        "DataConfig": Section(
            "data",
            "",
            {
                **reading(places),
                "regularisation": Change(True, refused="all are `regularisation`"),
                "path": places["masked"],
                "sources": Change([{"path": places["masked"]}], {"path": None, "sources": [{"path": places["odd"]}]}),
                "size": 16,
                "buckets": Change({"step": 16, "min_side": 16}, {"path": places["odd"], "size": 64}),
                "check": "none",
                "on_bad": Change("skip", {"path": places["bad"], "max_bad": 0.9}, "repair or remove them"),
                "max_bad": Change(0.9, {"path": places["bad"], "on_bad": "skip"}, "more than data.max_bad"),
                "download": Change(True, {"path": "hf://datasets/me/set"}),
                "quarantine": places["quarantine"],
                "min_side": Change(40, refused="the smallest side must be 40 px"),
                "max_pixels": Change(100, refused="100"),
                "background": Change((0, 0, 0), {"path": places["odd"]}),
                "decode": Change("fast", {"path": places["large"]}),
                "cache_bytes": 0,
                "cache": cache,
            },
        ),
        "SourceConfig": Section(
            "sources",
            "sources.0.",
            {
                **reading(places, "sources.0."),
                "path": places["masked"],
                "size": Change(96, buckets),
            },
        ),
        "ComposedConfig": Section(
            "data",
            "composed.",
            {
                "rows": Change(30, composed),
                "seed": Change(1, composed),
                "shares": Change({"pair": 1.0}, composed),
                "held_out": Change(places["held_out"], composed),
                "name": Change("text", composed, "no caption of"),
                "synonyms": Change({"disc": ["circle"], "box": ["crate"]}, composed),
            },
        ),
        "WordingConfig": Section(
            "data",
            "wording.",
            {
                "replace": {"red": "crimson"},
                "trigger": "sks",
                "prefix": "photo of",
                "suffix": "on white",
                "lines": Change("first", {"captions": ["lines"], "path": places["odd"]}),
                "wildcards": Change(True, {"captions": ["choices"], "path": places["odd"]}),
                "separator": Change(";", {"wording.trigger": "sks"}),
                "shuffle": Change(True, tags | {"path": places["odd"]}),
                "drop_tags": Change(0.5, tags | {"path": places["odd"]}),
                "keep": Change(2, tags | {"path": places["odd"], "wording.shuffle": True}),
                "keep_separator": Change("|||", {"captions": ["kept"], "path": places["odd"]}),
                "second_separator": Change(";;", {"captions": ["kept"], "path": places["odd"]}),
            },
        ),
        "BucketConfig": Section(
            "data",
            "buckets.",
            {
                "sizes": Change([32], {"path": places["odd"], **buckets}),
                "step": Change(32, {"path": places["odd"], **buckets}),
                "min_side": Change(48, {"path": places["odd"], **buckets}),
                "max_side": Change(64, {"path": places["odd"], **buckets}),
                "enlarge": Change(False, {"path": places["odd"], **buckets}),
            },
        ),
        "CacheConfig": Section(
            "unet",
            "data.cache.",
            {
                "folder": Change(places["output"] + "-cache2", {"data.cache": cache}),
                "gigabytes": Change(1e-9, {"data.cache": cache}),
            },
        ),
    }


def reading(places: dict[str, str], at: str = "") -> dict[str, Any]:
    """Return the changes of the settings that a whole section and each of its sources have, which is at path `at`."""
    table = {f"{at}path": places["table"], f"{at}picture": "image", f"{at}captions": ["caption"]}
    return {
        "layout": Change("parquet", refused="no parquet file"),
        "subfolders": Change(False, {f"{at}path": places["odd"]}),
        "picture": Change("thumb", table),
        "where": {"split": "train"},
        "where_not": {"split": "train"},
        "captions": ["text_alt"],
        "caption_ending": Change(".tags", {f"{at}path": places["files"]}),
        "default_caption": Change("a thing", {f"{at}path": places["bare"], f"{at}missing_captions": "empty"}),
        "missing_captions": Change("empty", {f"{at}path": places["bare"]}, "no caption"),
        "caption_dropout": 0.5,
        "wording": {"prefix": "photo of"},
        "flip": True,
        "fit": Change("pad", {f"{at}path": places["odd"]}),
        "weight": 2.0,
        "regularisation": True,
        "loss_weight": 0.5,
        "read_timeout": 5.0,
        "composed": Change({"rows": 20}, {f"{at}path": places["things"], "check": "none"}),
    }
