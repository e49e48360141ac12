"""What the tests of guidance by a network in a folder share."""

import json
import shutil

import pytest


@pytest.fixture
def changed(tmp_path):
    """Return a function that copies a model folder and changes values of the copy's config.json."""

    def copied(folder, **values):
        copy = shutil.copytree(folder, tmp_path / "changed")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **values}))
        return copy

    return copied
