"""Row G12: Ctrl-C while drawing ends in time with 130 and leaves no half picture; strange surroundings do no harm."""

import os
import signal
import subprocess
import sys
import time

import pytest

from latent_diffusion.cli.main import main

COMMAND = [sys.executable, "-u", "-m", "latent_diffusion"]


def heed_interrupts():
    """A shell that runs the tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder, *arguments, **options):
    options.setdefault("preexec_fn", heed_interrupts)
    return subprocess.Popen(
        [*COMMAND, "generate", "a cat", "--model", str(folder), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_c_while_sampling(tiny_folder, tmp_path):
    """Nothing of the picture is left, nor of its preview."""
    preview = tmp_path / "now.png"
    process = start(
        tiny_folder, "--steps", "900", "--sampler", "ddpm", "-k", "2", "--batch-size", "1", "--seed", "1",
        "--preview", str(preview), "-o", str(tmp_path / "a.png"),
    )  # fmt: skip
    wait_for(preview.exists, process)
    start_of_end = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    took = time.monotonic() - start_of_end
    assert process.returncode == 130 and err.strip() == "interrupted" and out == ""
    assert took < 5, "well within 2 s on a machine that does nothing else"
    assert not list(tmp_path.iterdir()), "no picture, no part of one, no preview"


def test_plain_surroundings(tiny_folder, tmp_path):
    environment = {"LANG": "C", "LC_ALL": "C", "TERM": "dumb", "NO_COLOR": "1"}
    process = start(
        tiny_folder, "--steps", "1", "-o", str(tmp_path / "a.png"), "--negative-prompt", "мышь",
        env={**os.environ, **environment},
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert out.strip().endswith("a.png") and (tmp_path / "a.png").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_found_before_anything_is_computed(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "latent_diffusion.cli.picture_files.load_pipeline", lambda *_: pytest.fail("loaded before the check")
    )
    folder = tmp_path / "read-only"
    folder.mkdir()
    real = open

    def full(path, mode="r", *args, **kwargs):
        if "x" in mode and str(folder) in str(path):
            return real("/dev/full", "wb", buffering=0)
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    assert main(["generate", "a cat", "--model", str(tiny_folder), "-o", str(folder)]) == 6
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "No space left" in err
