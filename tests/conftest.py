"""A tiny model with random weights, built once a session: every part is real, only small."""

import ast
import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
if "LATENT_DIFFUSION_CACHE" not in os.environ:  # one folder for all processes of the suite, none of the user's files
    os.environ["LATENT_DIFFUSION_CACHE"] = tempfile.mkdtemp(prefix="latent-diffusion-tests-")
    atexit.register(shutil.rmtree, os.environ["LATENT_DIFFUSION_CACHE"], ignore_errors=True)
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Each worker, and every process that it starts, keeps to its own share of the cores. Otherwise a training takes all
    # cores in every worker, and its threads spend most of their time waiting for each other's turn.
    share = max(1, (os.cpu_count() or 1) // int(workers))
    if hasattr(os, "sched_setaffinity"):
        cores, number = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        share = max(1, len(cores) // int(workers))
        os.sched_setaffinity(0, {cores[(number * share + k) % len(cores)] for k in range(share)})
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # torch reads it when imported

CAPTIONS = ("a 3d render of a red apple", "a flat icon of a cat", "a black and white drawing of the sun", "a blue car")


_reached: list[str] = []
"""Hosts outside this machine that the running test tried to reach."""


def _watch(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        local = not host or str(host).startswith(("127.", "::1", "/", "\0")) or host in ("localhost", "0.0.0.0", "::")
        if not local and isinstance(address, tuple | str):
            _reached.append(f"{event} {host}")


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def no_network():
    """Fail a test whose process reached for another machine, whatever came of it."""
    _reached.clear()
    yield
    assert not _reached


@pytest.fixture(autouse=True)
def same_working_directory():
    """Fail a test that leaves the process in another folder: the next one might read a relative path."""
    before = os.getcwd()
    yield
    after = os.getcwd()
    os.chdir(before)
    assert after == before


@pytest.fixture(autouse=True)
def same_threads():
    """Give torch back its number of threads: a training in this process chooses its own."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_messages_to_pytest():
    """Let pytest see this package's messages: a training in this process sends them to its own console."""
    ours = logging.getLogger("latent_diffusion")
    ours.handlers, ours.propagate = [], True
    ours.setLevel(logging.NOTSET)
    yield


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A diffusers folder of the tiny family with random weights (epsilon); treat it as read-only."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    from latent_diffusion.checkpoint.components import Components
    from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
    from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
    from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
    from latent_diffusion.families import tiny
    from latent_diffusion.models.autoencoder import AutoencoderKL
    from latent_diffusion.models.text_encoder import TextEncoder
    from latent_diffusion.models.unet import UNet

    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer(train_byte_pairs(CAPTIONS, 600))
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=tiny.UNET.cross_attention_dim,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        schedule, prediction = read_schedule(tiny.SCHEDULER)
        components = Components(
            unet=UNet(tiny.UNET),
            autoencoder=AutoencoderKL(tiny.AUTOENCODER),
            text_encoder=TextEncoder(CLIPTextModel(text), tokenizer),
            schedule=schedule,
            prediction=prediction,
            scheduler_config=tiny.SCHEDULER,
            name="tiny",
        )
    save_folder(components, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder):
    """The tiny model as a pipeline; pipelines keep no state, so all tests may share it."""
    from latent_diffusion import LatentDiffusionPipeline

    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory):
    """A function from a family's name ("sd2_v", "sdxl_inpaint") to a folder of it with tiny random weights; read-only.

    Levels, channels, text towers and scheduler are the family's; only widths and depths shrink.
    """
    import functools

    @functools.cache
    def folder(name: str) -> Path:
        from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder

        path = tmp_path_factory.mktemp("families") / name
        save_folder(tiny_components(name), path)
        return path

    return folder


def tiny_components(name: str):
    """Return the parts of a family in tiny, with random weights that no norm or zero hides."""
    import importlib
    from dataclasses import replace

    import torch

    from latent_diffusion.checkpoint.components import Components
    from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
    from latent_diffusion.models.autoencoder import AutoencoderKL
    from latent_diffusion.models.unet import UNet

    values = importlib.import_module(f"latent_diffusion.families.{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = tiny_text(values.TEXT)
        levels, old = len(values.UNET.block_out_channels), values.UNET
        count = 0 if old.added_width is None else (old.added_width - values.TEXT[-1].projection) // old.size_width
        depth = old.transformer_layers_per_block
        config = replace(
            old,
            sample_size=8,
            block_out_channels=(16, 32, 32, 32)[:levels],
            num_attention_heads=(2, 2, 4, 4)[:levels],
            layers_per_block=1,
            cross_attention_dim=text_encoder.width,
            transformer_layers_per_block=depth if depth == 1 else (1, 2, 3, 2)[:levels],
            added_width=text_encoder.pooled_width + 8 * count if count else None,
            size_width=8,
            norm_num_groups=8,
        )
        vae = replace(values.AUTOENCODER, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=8)
        unet, autoencoder = UNet(config), AutoencoderKL(replace(vae, sample_size=32))
        with torch.no_grad():
            for weight in (*unet.parameters(), *autoencoder.parameters(), *text_encoder.parameters()):
                weight.add_(torch.randn_like(weight), alpha=0.02)
    schedule, prediction = read_schedule(values.SCHEDULER)
    zeros = getattr(values, "ZEROS_FOR_EMPTY_PROMPT", False)
    parts = (unet.eval(), autoencoder.eval(), text_encoder.eval())
    return Components(*parts, schedule, prediction, values.SCHEDULER, name, zeros_for_empty_prompt=zeros)


def tiny_text(configs):
    """Return the text encoder of a family in tiny."""
    from dataclasses import replace

    from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
    from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders

    towers = []
    for config in configs:
        tokenizer = clip_tokenizer(train_byte_pairs(CAPTIONS, 600))
        tokenizer.pad_token = config.pad_token
        width = 24 if config.projection is None else 32
        small = replace(config, width=width, layers=3, heads=2, projection=config.projection and 16)
        small = replace(small, vocab_size=len(tokenizer))
        towers.append(TextEncoder(small.build(tokenizer), tokenizer, penultimate=config.penultimate))
    return towers[0] if len(towers) == 1 else TextEncoders(*towers)


COLOURS = ("red", "green", "blue", "orange", "purple", "black")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of six coloured discs with captions; treat it as read-only."""
    import json

    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for k, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(picture).ellipse((4, 4 + k, 20 + k, 28), fill=colour)
        picture.save(folder / f"{k}.png")
        texts = {"text": f"a {colour} disc", "text_alt": [f"disc, {colour}", f"{colour} circle"]}
        place = {"split": "train" if k < 4 else "val", "turn": "even" if k % 2 == 0 else "odd"}
        rows.append({"file_name": f"{k}.png", **texts, **place})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tiny_objective(tiny_folder):
    """A function from an objective's name to an `objective:` section that is trained in a moment on the discs.

    One that is not listed starts from the tiny model where it has `init`, and else has its defaults.
    """
    from latent_diffusion.registry import find

    tower = {"width": 16, "layers": 1, "heads": 2}
    sections = {
        "autoencoder": {
            "equivariance": 0.25,
            "model": {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8},
            "adversarial": {"start": 1, "weight": 0.05, "width": 8, "layers": 1},
        },
        "lora": {
            "init": str(tiny_folder),
            "adapter": {"rank": 2, "layers": "all", "parts": ["unet", "text_encoder"]},
            "preserve": {"replace": {"disc": "circle"}},
        },
        "bridge": {"init": str(tiny_folder), "start": {"split": "val"}, "match": "turn"},
        "reflow": {"init": str(tiny_folder), "pairs": {"steps": 2}},
        "concepts": {"init": str(tiny_folder), "concepts": [{"prompt": "a red disc"}], "draw_steps": 3},
        "textual_inversion": {"init": str(tiny_folder), "words": [{"token": "disc", "start": "sun", "vectors": 2}]},
        "classifier": {"model": str(tiny_folder), "fields": ["turn"], "channels": [8, 16], "groups": 4},
        "latent_clip": {"model": str(tiny_folder), "embed_dim": 8, "channels": [8, 16], "groups": 4},
        "clip": {"embed_dim": 8, "patch_size": 16, "vocab_size": 600, "text": tower, "vision": tower},
        "plane": {"process": "gan", "width": 16, "layers": 1, "gan": {"r1_every": 2}},
    }

    def section(name: str) -> dict:
        settings = find("latent_diffusion.training.objectives", name).settings_type
        default = {"init": str(tiny_folder)} if "init" in settings.model_fields else {}
        return {"name": name, **sections.get(name, default)}

    return section


@pytest.fixture(scope="session")
def source_of():
    """Return a function of a file and a name that returns the source text of the function, class or method."""

    def source_of(file: str, name: str) -> str:
        text = (Path(__file__).parent.parent / file).read_text()
        node: ast.AST = ast.parse(text)
        for part in name.split("."):  # dotted for methods
            found = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == part]
            assert found, f"{file} has no {name}"
            node = found[0]
        return ast.get_source_segment(text, node) or ""

    return source_of
