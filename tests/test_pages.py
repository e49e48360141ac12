"""What lies beside the package is named by a page, so that it can be found and is known to be used."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_script_is_named_by_a_page():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    scripts = [path.name for path in (ROOT / "scripts").iterdir() if path.is_file()]
    experiments = [f"experiments.{path.stem}" for path in (ROOT / "experiments").glob("*.py")]
    assert len(scripts) > 5 and len(experiments) > 5
    assert not [name for name in scripts + experiments if name not in text]


def test_every_experiment_has_an_entry_in_the_log():
    log = (ROOT / "experiments" / "log.md").read_text()
    assert not [path.stem for path in (ROOT / "experiments").glob("*.py") if f"experiments.{path.stem}" not in log]
