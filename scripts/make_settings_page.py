"""Write docs/settings.md from the schemas of the configuration: `python scripts/make_settings_page.py`."""

from pathlib import Path

from latent_diffusion.training.settings_page import settings_page

if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "settings.md").write_text(settings_page(), "utf-8")
