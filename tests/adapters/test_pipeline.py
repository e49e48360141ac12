"""Adapters in the pipeline: what is drawn, what is recorded, what is saved; and that nothing is left behind."""

import contextlib
import threading
import warnings

import pytest
import torch
from safetensors.torch import save_file

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.record import Record

CALL = {"seed": 3, "num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}
PROMPT = "a red apple"


@pytest.fixture
def pipe(tiny_folder):
    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def files(random_lora, tmp_path_factory):
    """A folder with two LoRA files and a learned word."""
    folder = tmp_path_factory.mktemp("loras")
    (folder / "styles").mkdir()
    write_lora(folder / "ink.safetensors", random_lora(1, size=0.4))
    write_lora(folder / "styles" / "oil.safetensors", random_lora(2, size=0.4), "peft")
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, folder / "zorp.safetensors")
    return folder


def draw(pipe, prompt=PROMPT, **options):
    return pipe(prompt, **{**CALL, **options}).images


def test_on_and_off_again_is_the_same_picture(pipe, files):
    plain = draw(pipe)
    report = pipe.load_lora_weights(files / "ink.safetensors", weight=0.8)
    assert report.name == "ink" and report.format == "kohya" and not report.unmatched
    ink = draw(pipe)
    assert (ink - plain).abs().max() > 0.01
    pipe.load_lora_weights(files / "styles" / "oil.safetensors", adapter_name="paint")
    assert pipe.get_active_adapters() == ["ink", "paint"] == pipe.get_list_adapters()
    assert not torch.equal(draw(pipe), ink)
    pipe.set_adapters("ink", 0.8)
    assert torch.equal(draw(pipe), ink)
    pipe.set_adapters(["paint", "ink"], [0.0, 0.8])
    assert torch.equal(draw(pipe), ink)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.get_active_adapters() == [] and torch.equal(draw(pipe), ink)
    pipe.unfuse_lora()
    assert torch.equal(draw(pipe), plain)


def test_learned_words(pipe, files):
    plain = draw(pipe, "a zorp apple")
    (word,) = pipe.load_textual_inversion(files / "zorp.safetensors")
    assert word.token == "zorp"
    learned = draw(pipe, "a zorp apple")
    assert not torch.equal(learned, plain) and torch.equal(draw(pipe), draw(pipe))
    with pytest.raises(ConfigError, match="'zorp' is loaded already"):
        pipe.load_textual_inversion(files / "zorp.safetensors")
    pipe.load_lora_weights(files / "ink.safetensors")
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, "a zorp apple"), learned)
    pipe.unload_textual_inversion("zorp")
    assert torch.equal(draw(pipe, "a zorp apple"), plain)


def test_a_prompt_asks_for_adapters(pipe, files):
    plain = draw(pipe)
    pipe.load_lora_weights(files / "ink.safetensors", weight={"unet": 0.5, "text_encoder": 0.25})
    pipe.load_lora_weights(files / "styles" / "oil.safetensors")
    both = draw(pipe)
    pipe.set_adapters([])
    asked = f"{PROMPT}<lora:ink:0.25:0.5><lora:styles/oil:1>"
    assert torch.equal(draw(pipe), plain)
    torch.testing.assert_close(draw(pipe, asked, lora_folder=files), both, rtol=1e-4, atol=1e-4)
    assert torch.equal(draw(pipe), plain)
    # every picture of a batch has its own
    mixed = pipe([PROMPT, asked, PROMPT], lora_folder=files, **{**CALL, "seed": [3, 3, 3]})
    torch.testing.assert_close(mixed.images, torch.cat([plain, both, plain]), rtol=1e-4, atol=1e-4)
    assert [[a.name for a in record.adapters] for record in mixed.records] == [[], ["ink", "styles/oil"], []]
    for folder, words in ((None, "give its folder"), (files, "no adapter 'nope'"), (files / "x", "no such folder")):
        with pytest.raises(ConfigError, match=words):
            draw(pipe, f"{PROMPT} <lora:nope:1>", lora_folder=folder)
    with pytest.raises(ConfigError, match="no such folder"):  # also where no prompt asks for it
        draw(pipe, PROMPT, lora_folder=files / "x")


def test_the_record_says_what_was_at_work(pipe, files):
    pipe.load_lora_weights(files / "ink.safetensors", weight=0.8)
    pipe.load_textual_inversion(files / "zorp.safetensors")
    (record,) = pipe(PROMPT, **CALL).records
    assert [(a.kind, a.name, len(a.hash)) for a in record.adapters] == [("lora", "ink", 12), ("embedding", "zorp", 12)]
    assert record.adapters[0].strengths == {"unet": 0.8, "text_encoder": 0.8}
    assert Record.from_json(record.to_json()) == record
    text = write_infotext(record)
    assert text.startswith(f"{PROMPT} <lora:ink:0.8>\n")
    assert f'Lora hashes: "ink: {record.adapters[0].hash}"' in text
    assert f'TI hashes: "zorp: {record.adapters[1].hash}"' in text


def test_a_saved_model_has_what_was_fused_and_says_what_not(pipe, files, tmp_path):
    pipe.load_lora_weights(files / "ink.safetensors")
    ink = draw(pipe)
    pipe.fuse_lora()
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        pipe.save_pretrained(tmp_path / "fused")
    saved = LatentDiffusionPipeline.from_pretrained(tmp_path / "fused", device="cpu")
    torch.testing.assert_close(draw(saved), ink)
    pipe.load_lora_weights(files / "styles" / "oil.safetensors")
    with pytest.warns(LatentDiffusionWarning, match="not saved with the model: adapter 'oil'"):
        pipe.save_pretrained(tmp_path / "again")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "again", device="cpu")
    torch.testing.assert_close(draw(again), ink)


def test_diffusers_gets_what_is_drawn(pipe, files):
    pipe.load_lora_weights(files / "ink.safetensors")
    theirs = pipe.to_diffusers()
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert torch.equal(theirs.unet.get_submodule(path).weight, pipe.components.unet.get_submodule(path).weight)


def test_a_drawing_keeps_the_adapters_it_started_with(pipe, files):
    pipe.load_lora_weights(files / "ink.safetensors")
    ink, changed = draw(pipe), threading.Event()

    def meanwhile(step):
        if step.index == 0:
            pipe.set_adapters([])
            changed.set()

    assert torch.equal(draw(pipe, on_step=meanwhile), ink)
    assert changed.is_set() and not torch.equal(draw(pipe), ink)


def test_threads_that_load_at_once_lose_none(pipe, files, monkeypatch):
    both, change = threading.Barrier(2), Engine.with_adapters

    def slow(engine, adapters):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=1.0)  # for another thread that has begun with the same engine
        return change(engine, adapters)

    monkeypatch.setattr(Engine, "with_adapters", slow)
    names = ("ink.safetensors", "styles/oil.safetensors")
    threads = [threading.Thread(target=pipe.load_lora_weights, args=(files / name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pipe.get_active_adapters()) == ["ink", "oil"]


def test_on_the_command_line(tiny_folder, files, tmp_path, monkeypatch, capsys):
    from latent_diffusion.cli.main import main
    from latent_diffusion.provenance.picture_file import read_texts

    monkeypatch.chdir(tmp_path)
    base = ["generate", "a zorp <lora:styles/oil:0.5> apple", "--model", str(tiny_folder), "--steps", "2", "-s", "1"]
    adapters = ["--lora", f"{files}/ink.safetensors:0.7", "--embedding", f"{files}/zorp.safetensors"]
    assert main([*base, *adapters, "--lora-folder", str(files), "-o", "a.png"]) == 0
    _, record = read_texts(tmp_path / "a.png")
    assert [(a.name, a.strengths.get("unet")) for a in record.adapters] == [
        ("ink", 0.7),
        ("styles/oil", 0.5),
        ("zorp", None),
    ]
    capsys.readouterr()
    for wrong, code, words in (
        (["--lora", "absent.safetensors:1"], 4, "--lora 'absent.safetensors': there is no such file"),
        (["--embedding", "absent.pt"], 4, "--embedding 'absent.pt': there is no such file"),
        (["--lora", f"{files}/zorp.safetensors"], 4, "none of its 1 tensors"),
        (["--lora", f"{files}/ink.safetensors:nan"], 2, "no finite number"),
        (["--lora", f"{files}/ink.safetensors:1e30"], 2, "use -100 to 100"),
        ([], 2, "give its folder"),
    ):
        assert main([*base, *wrong]) == code
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
