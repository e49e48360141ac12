"""Adapters that prompts ask for: per prompt, recorded, and found again from the picture."""

import pytest
import torch
from safetensors.torch import load_file

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.cli.main import main
from latent_diffusion.errors import ConfigError
from latent_diffusion.provenance.infotext import write_infotext
from latent_diffusion.provenance.picture_file import read_texts

CALL = {"num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def folder(random_lora, tmp_path_factory):
    made = tmp_path_factory.mktemp("tags")
    write_lora(made / "ink.safetensors", random_lora(1, size=0.4))
    return made


def test_each_prompt_of_a_batch_has_its_own_adapters(tiny_pipeline, folder):
    prompts = ["a cat <lora:ink:0.9>", "a cat", "a cat <lora:ink:0.2:0.5>"]
    batch = tiny_pipeline(prompts, seed=[1, 1, 1], lora_folder=folder, **CALL)
    for k, prompt in enumerate(prompts):
        alone = tiny_pipeline(prompt, seed=1, lora_folder=folder, **CALL).images[0]
        assert (alone - batch.images[k]).abs().max() <= 1e-4
    assert (batch.images[0] - batch.images[1]).abs().max() > 0.01
    assert [len(record.adapters) for record in batch.records] == [1, 0, 1]
    assert batch.records[2].adapters[0].strengths["unet"] == 0.5
    assert torch.equal(tiny_pipeline("a cat", seed=1, **CALL).images, tiny_pipeline("a cat", seed=1, **CALL).images)


@pytest.mark.parametrize("by", ["tag", "option"])
def test_regenerate_finds_them_in_the_folder(tiny_folder, folder, tmp_path, monkeypatch, capsys, by):
    monkeypatch.chdir(tmp_path)
    asked = {
        "tag": ["a cat <lora:ink:0.9>", "--lora-folder", str(folder)],
        "option": ["a cat", "--lora", f"{folder / 'ink.safetensors'}:0.9"],
    }[by]
    model = ["--model", str(tiny_folder)]
    assert main(["generate", *asked, *model, "--steps", "2", "-s", "1", "-o", "a.png"]) == 0
    assert read_texts(tmp_path / "a.png")[1].adapters[0].name == "ink"
    assert main(["regenerate", "a.png", *model]) == 2
    assert "ink" in capsys.readouterr().err
    assert main(["regenerate", "a.png", *model, "--lora-folder", str(folder), "-o", "b.png"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "bit for bit" in capsys.readouterr().err


def test_a_pipeline_with_adapters_draws_again_from_its_record(tiny_folder, folder):
    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")
    pipe.load_lora_weights(folder / "ink.safetensors", weight=0.9)
    (record,) = pipe("a cat", seed=1, **CALL).records
    assert write_infotext(record).startswith("a cat <lora:ink:0.9>\n")


def test_a_learned_word_is_not_torn_apart(tiny_folder, tmp_path):
    from safetensors.torch import save_file

    from latent_diffusion.prompts.chunks import read_chunks

    pipe = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu")
    save_file({"emb_params": torch.randn(4, 32)}, tmp_path / "zorp.safetensors")
    pipe.load_textual_inversion(tmp_path / "zorp.safetensors")
    tower = pipe.components.text_encoder
    assert [len(word) for word in tower.token_ids("cat zorp cat")] == [1, 4, 1]
    assert [len(chunk) for chunk in read_chunks(tower, "cat " * 73 + "zorp cat").chunks] == [73, 5]
    assert [len(chunk) for chunk in read_chunks(tower, "cat " * 71 + "zorp cat").chunks] == [75, 1]
    assert [len(chunk) for chunk in read_chunks(tower, "zorp " * 40).chunks] == [72, 72, 16]


def test_a_name_that_only_the_header_holds(tiny_pipeline, random_lora, tmp_path):
    """The web UI writes the name that an adapter was trained under into prompts, not that of its file."""
    trained = {"ss_output_name": "ink-drawing"}
    write_lora(tmp_path / "inkDrawing_v20.safetensors", random_lora(1, size=0.4), metadata=trained)
    (tmp_path / "broken.safetensors").write_bytes(b"no header")

    def draw(name):
        return tiny_pipeline(f"a cat <lora:{name}:0.9>", seed=1, lora_folder=tmp_path, **CALL).images

    assert torch.equal(draw("ink-drawing"), draw("inkDrawing_v20"))
    write_lora(tmp_path / "other.safetensors", random_lora(2), metadata=trained)
    with pytest.raises(ConfigError, match=r"is the name of inkDrawing_v20\.safetensors, other\.safetensors"):
        draw("ink-drawing")


def test_an_old_ending_is_found_by_its_name(tiny_pipeline, random_lora, tmp_path):
    write_lora(tmp_path / "ink.safetensors", random_lora(1, size=0.4))
    torch.save(load_file(tmp_path / "ink.safetensors"), tmp_path / "old.pt")
    found = [tiny_pipeline(f"a cat <lora:{n}>", seed=1, lora_folder=tmp_path, **CALL).images for n in ("ink", "old")]
    assert torch.equal(*found)
