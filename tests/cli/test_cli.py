"""The command line as a user meets it: files written, one line for each mistake, the exit codes of the README."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts

COMMANDS = ["generate", "inpaint", "train", "evaluate", "info"]


@pytest.fixture
def generate(tiny_folder):
    """Run `generate` with the tiny model, two steps."""
    return lambda *arguments: main(["generate", "--model", str(tiny_folder), "--steps", "2", *arguments])


@pytest.fixture
def inpaint(tiny_folder, here):
    """Run `inpaint` on a picture of 70x50 px and its mask, both already in the folder."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(here / "image.png")
    mask = np.zeros((50, 70), np.uint8)
    mask[10:20, 30:60] = 255
    Image.fromarray(mask).save(here / "mask.png")
    base = ["inpaint", "a cat", "--model", str(tiny_folder), "--steps", "2"]

    def run(*arguments, image="image.png", mask="mask.png"):
        return main([*base, "--image", image, "--mask", mask, *arguments])

    return run


def one_line(capsys) -> str:
    """The single line on stderr; nothing on stdout, no traceback."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_generate_prints_the_path_it_wrote(generate, here, capsys):
    assert generate("a red apple", "--seed", "7") == 0
    (written,) = capsys.readouterr().out.split()
    assert re.fullmatch(r"outputs/\d{8}-\d{6}-7\.png", written)
    record = read_texts(here / written)[1]
    assert record and (record.prompt, record.seed, record.model) == ("a red apple", 7, "tiny")


def test_quiet_without_a_terminal(generate, here, capsys):
    assert generate("a cat") == 0
    assert capsys.readouterr().err == ""


def test_output_names(generate, here, capsys):
    assert generate("a cat", "--output", "cat.png") == 0
    assert generate("a cat", "a dog", "-k", "2", "--output", "pets.png", "--seed", "3") == 0
    assert generate("a cat", "--output", "folder") == 0
    names = {str(file.relative_to(here)) for file in here.rglob("*.png")}
    assert {"cat.png", "pets-0001.png", "pets-0002.png", "pets-0003.png", "pets-0004.png"} <= names
    assert len(names) == 6
    prompts = [read_texts(here / f"pets-000{k}.png")[1].prompt for k in (1, 2, 3, 4)]
    assert prompts == ["a cat", "a cat", "a dog", "a dog"]


def test_nothing_is_overwritten(generate, here, capsys, monkeypatch):
    (here / "cat.png").write_bytes(b"mine")
    monkeypatch.setattr(
        "latent_diffusion.cli.picture_files.load_pipeline", lambda *_: pytest.fail("checked before any compute")
    )
    assert generate("a cat", "--output", "cat.png") == 6
    assert "'cat.png' exists" in one_line(capsys)
    assert (here / "cat.png").read_bytes() == b"mine"
    (here / "pets-0002.png").symlink_to("nowhere")
    assert generate("a cat", "-k", "3", "--output", "pets.png") == 6


def test_the_same_second_gives_another_name(generate, here, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20261121-120000")
    assert [generate("a cat", "--seed", "1") for _ in range(3)] == [0, 0, 0]
    assert sorted(f.name for f in (here / "outputs").iterdir()) == [
        "20261121-120000-1-b.png", "20261121-120000-1-c.png", "20261121-120000-1.png"
    ]  # fmt: skip


def test_closed_streams_do_no_harm(generate, here, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert generate("a cat", "-o", "a.png") == 0
    assert (here / "a.png").exists()
    assert generate("a cat", "-o", "a.png") == 6


def test_a_reader_that_leaves_loses_no_picture(tiny_folder, tmp_path):
    code = "import sys; from latent_diffusion.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = [
        "generate",
        "a cat",
        "-k",
        "2",
        "--steps",
        "1",
        "-o",
        str(tmp_path / "a.png"),
        "--model",
        str(tiny_folder),
    ]
    process = subprocess.Popen([sys.executable, "-u", "-c", code, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_a_bar_is_shown_on_a_terminal(generate, here, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert generate("a cat", "-o", "a.png") == 0
    out, err = capsys.readouterr()
    assert out == "a.png\n" and "Drawing" in err


def test_prompts_file(generate, here, capsys):
    (here / "prompts.txt").write_text("a cat\n\n  a dog \n")
    assert generate("--prompts-file", "prompts.txt", "-o", "pets.png") == 0
    assert read_texts(here / "pets-0002.png")[1].prompt == "a dog"


def test_the_same_seed_gives_the_same_picture(generate, here):
    for name in ("a.png", "b.png"):
        assert generate("a cat", "--seed", "5", "-o", name) == 0
    a, b = (np.asarray(Image.open(here / name)) for name in ("a.png", "b.png"))
    assert np.array_equal(a, b)


def test_inpaint_keeps_the_rest(inpaint, here, capsys):
    assert inpaint("-o", "out.png", "--masked-content", "fill") == 0
    before, after, mask = (np.asarray(Image.open(here / f"{n}.png")) for n in ("image", "out", "mask"))
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert not np.array_equal(before, after)
    assert capsys.readouterr().out == "out.png\n"


def test_a_lossy_file_and_an_empty_mask_are_said(inpaint, here, capsys):
    assert inpaint("-o", "out.jpg") == 0
    assert "is a lossy format" in one_line_of(capsys.readouterr().err)
    Image.new("L", (70, 50)).save(here / "black.png")
    assert inpaint("-o", "out.png", mask="black.png") == 0
    assert "nothing to repaint" in one_line_of(capsys.readouterr().err)
    before, after = (np.asarray(Image.open(here / f"{n}.png")) for n in ("image", "out"))
    assert np.array_equal(before, after)


def one_line_of(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


GENERATE_MISTAKES = [
    (["--sampler", "dimm"], 2, "tcd, unipc (did you mean 'ddim'?)"),
    (["--spacing", "karas"], 2, "did you mean 'karras'?"),
    (["--height", "500"], 2, "height 500 is not a multiple of 8; use 496 or 504"),
    (["--width", "100000"], 2, "width 100000"),
    (["--seed", "4294967296"], 2, "out of range; use 0 to 4294967295"),
    (["--seed", "-1"], 2, "out of range"),
    (["--seed", "one"], 2, "--seed"),
    (["--steps", "0"], 2, "num_inference_steps 0"),
    (["--guidance-scale", "nan"], 2, "guidance_scale nan"),
    (["--num-images", "0"], 2, "num"),
    (["--eta", "0.5", "--sampler", "ddpm"], 2, "has no eta"),
    (["--dtype", "float8"], 2, "unknown dtype 'float8'"),
    (["--device", "gpu"], 2, "unknown device 'gpu'"),
    (["--device", "cuda:99"], 6, "does not exist"),
    (["--model", "emojy-7"], 4, "no model 'emojy-7'"),
    (["--output", "a.gif"], 2, "cannot write '.gif'"),
    (["--output", "/proc/here"], 6, "cannot be written"),
    (["--prompts-file", "none.txt"], 3, "none.txt"),
    (["--stpes", "3"], 2, "--stpes"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), GENERATE_MISTAKES, ids=lambda v: str(v)[:30])
def test_mistakes_of_generate(generate, here, capsys, arguments, code, words):
    assert generate("a cat", *arguments) == code
    assert words in one_line(capsys)
    assert not list(here.rglob("*.png")), "no picture was written"


def test_no_prompt_at_all(generate, here, capsys):
    assert generate() == 2
    assert "no prompt" in one_line(capsys)


def test_mistakes_of_inpaint(inpaint, here, capsys):
    (here / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    whole = (here / "image.png").read_bytes()
    (here / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (7, 9)).save(here / "small.png")
    for arguments, files, code, words in (
        ([], {"image": "none.png"}, 3, "none.png"),
        ([], {"mask": "none.png"}, 3, "none.png"),
        ([], {"image": "broken.png"}, 3, "broken.png"),
        ([], {"image": "half.png"}, 3, "half.png"),
        ([], {"mask": "small.png"}, 3, "the mask is 7x9 px but the picture is 70x50 px"),
        (["--strength", "2"], {}, 2, "strength 2"),
        (["--strength", "nan"], {}, 2, "strength nan"),
        (["--num-images", "0"], {}, 2, "--num-images"),
        (["--num-images", "99999999999"], {}, 2, "--num-images"),
        (["--steps", "0"], {}, 2, "num_inference_steps 0"),
        (["--masked-content", "black"], {}, 2, "original, fill, noise, nothing"),
    ):
        assert inpaint(*arguments, **files) == code
        assert words in one_line(capsys)


def test_a_damaged_model(tiny_folder, here, capsys):
    import shutil

    shutil.copytree(tiny_folder, here / "model")
    next((here / "model" / "unet").glob("*.safetensors")).write_bytes(b"\0" * 100)
    assert main(["generate", "a cat", "--model", "model"]) == 4
    assert "unet" in one_line(capsys)


def test_debug_shows_the_traceback(generate, here, capsys):
    assert generate("a cat", "--sampler", "x", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_bugs_exit_with_70_and_interrupts_with_130(generate, here, capsys, monkeypatch):
    def bug(*_):
        raise ZeroDivisionError("oops")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latent_diffusion.cli.picture_files.load_pipeline", bug)
    assert generate("a cat") == 70
    assert "ZeroDivisionError: oops" in one_line(capsys)
    monkeypatch.setattr("latent_diffusion.cli.picture_files.load_pipeline", interrupt)
    assert generate("a cat") == 130
    assert one_line(capsys) == "interrupted\n"


def test_train_reports_what_the_trainer_reports(here, capsys):
    assert main(["train", "none.yaml"]) == 2
    assert "none.yaml" in one_line(capsys)


def test_info_on_a_picture_and_on_a_model(generate, tiny_folder, here, capsys):
    assert generate("a red [apple]", "-o", "a.png", "--seed", "4") == 0
    capsys.readouterr()
    assert main(["info", "a.png"]) == 0
    assert "a red [apple]" in capsys.readouterr().out
    assert main(["info", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 4
    assert main(["info", str(tiny_folder)]) == 0
    assert "unet" in capsys.readouterr().out
    assert main(["info", "none.png"]) == 4
    assert "none.png" in one_line(capsys)


def test_info_cleans_what_a_stranger_wrote(here, capsys):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "\x1b[31mred [bold]x")
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    (here / "a.png").write_bytes(buffer.getvalue())
    assert main(["info", "a.png"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[bold]" in out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_complete_and_loads_no_torch(command):
    code = f"""
import sys
from latent_diffusion.cli.main import main
code = main({[command, "--help"] if command else ["--help"]})
heavy = {{"torch", "transformers", "diffusers", "open_clip", "torchvision", "accelerate"}} & set(sys.modules)
sys.exit(code or (f"loaded {{heavy}}" if heavy else 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS if not command else [command]:
        assert name in done.stdout
    assert "Example" in done.stdout or not command


def test_no_arguments_show_help(capsys):
    assert main([]) in (0, 2)
    assert "generate" in "".join(capsys.readouterr())


def test_importing_the_package_is_cheap_and_silent():
    code = """
import sys, latent_diffusion
heavy = {"torch", "numpy", "PIL", "transformers", "diffusers", "typer"} & set(sys.modules)
assert not heavy, heavy
from latent_diffusion import LatentDiffusionPipeline
heavy = {"torchvision", "transformers", "diffusers", "open_clip", "xformers", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
