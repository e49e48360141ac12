"""The reference of the settings: current, complete, and printed by --help."""

import os
import subprocess
import sys
from pathlib import Path

from latent_diffusion.config import RunConfig
from latent_diffusion.train import main
from latent_diffusion.training.settings_page import settings_page

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_schemas_say():
    page = settings_page()
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == page, "run python scripts/make_settings_page.py"
    for key in ("data.on_bad", "data.fit", "data.missing_captions", "objective.validation", "ema.warmup", "decay"):
        assert f"| `{key}` |" in page


def test_every_setting_has_a_meaning():
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert [row.split("`")[1] for row in rows if row.replace("\\|", "").split("|")[5].strip() == ""] == []


def test_help_prints_every_key_of_a_run(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "usage:" in printed and "docs/settings.md" in printed
    assert [name for name in RunConfig.model_fields if f"  {name} " not in printed] == []
    assert main([str(ROOT / "configs" / "finetune.yaml"), "--help"]) == 0


def test_help_needs_no_torch():
    code = "import sys; from latent_diffusion.train import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_help_into_a_closed_pipe_leaves_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "latent_diffusion.train", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
