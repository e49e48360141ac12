"""`generate --resume`: the same files from 1, 2 or 3 processes, also after a kill, and no picture drawn twice."""

import os
import subprocess
import sys
import time

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline

PROMPTS = [f"a {colour} disc" for colour in ("red", "green", "blue", "black", "white")]


@pytest.fixture
def arguments(tiny_folder, here):
    (here / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["generate", "--model", str(tiny_folder), "--prompts-file", "prompts.txt", "--device", "cpu"]
    return lambda folder, steps=1, *more: [*command, "--output", folder, "--steps", str(steps), "--resume", *more]


def pictures(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def launched(rank, count):
    return dict(os.environ) | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
    }


def test_three_processes_draw_each_row_once(arguments, here, monkeypatch):
    assert main(arguments("whole")) == 0
    drawn = []
    for rank in range(3):
        for name, value in launched(rank, 3).items():
            monkeypatch.setenv(name, value)
        before = set(pictures(here / "parts"))
        assert main(arguments("parts")) == 0
        drawn.append(sorted(set(pictures(here / "parts")) - before))
    assert drawn == [["0001.png", "0004.png"], ["0002.png", "0005.png"], ["0003.png"]]
    assert pictures(here / "parts") == pictures(here / "whole")


@pytest.mark.slow
def test_processes_killed_twice_write_the_same_files(arguments, here):
    """Three processes are killed as soon as a file is there; two go on and are killed; one ends the work."""
    code = "import sys, torch; torch.set_num_threads(1); from latent_diffusion.cli.main import main; sys.exit(main())"
    assert main(arguments("whole", 10)) == 0
    whole = pictures(here / "whole")
    assert list(whole) == [f"{row:04d}.png" for row in range(1, len(PROMPTS) + 1)]
    written = {}
    for count, least in ((3, 1), (2, 3), (1, len(PROMPTS))):
        running = [
            subprocess.Popen([sys.executable, "-c", code, *arguments("parts", 10)], env=launched(rank, count), cwd=here)
            for rank in range(count)
        ]
        end = time.monotonic() + 500
        while len(list((here / "parts").glob("*.png"))) < least and any(one.poll() is None for one in running):
            assert time.monotonic() < end
            time.sleep(0.05)
        for one in running:
            if count > 1:
                one.kill()
            one.wait()
        now = {name: (here / "parts" / name).stat().st_mtime_ns for name in pictures(here / "parts")}
        assert written.items() <= now.items(), "a picture was drawn twice"
        written = now
    assert pictures(here / "parts") == whole


@pytest.mark.parametrize("size", [1, 3])
def test_only_what_is_missing_is_drawn(arguments, here, monkeypatch, size):
    batch = ["--batch-size", str(size)]
    assert main(arguments("out", 1, *batch)) == 0
    whole = pictures(here / "out")
    (here / "out" / "0002.png").unlink()
    drawn, draw = [], LatentDiffusionPipeline.__call__
    monkeypatch.setattr(
        LatentDiffusionPipeline,
        "__call__",
        lambda self, prompt, **options: drawn.extend(prompt) or draw(self, prompt, **options),
    )
    assert main(arguments("out", 1, *batch)) == 0
    assert drawn == PROMPTS[1:2] if size == 1 else PROMPTS[:3]
    assert pictures(here / "out") == whole


def test_the_folder_of_another_command_is_refused(arguments, here, capsys):
    assert main(arguments("out")) == 0
    assert main(arguments("out", 3)) == 2
    assert "options differ" in capsys.readouterr().err
    (here / "prompts.txt").write_text("another")
    assert main(arguments("out")) == 2
    assert "rows" in capsys.readouterr().err
    (here / "out" / "rows.json").write_text("{")
    assert main(arguments("out")) == 3


def test_several_processes_need_a_folder(arguments, here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", "a disc"]) == 2
    assert main(arguments("one.png")) == 2
    assert "--output FOLDER" in capsys.readouterr().err
