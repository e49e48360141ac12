"""`/v1/images` with OpenAI's client for Node: `npm install openai` in a folder, and OPENAI_NODE_FOLDER=FOLDER."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = os.environ.get("OPENAI_NODE_FOLDER", "")
NODE = shutil.which("node")
if NODE is None or not (Path(FOLDER) / "node_modules" / "openai").is_dir():
    pytest.skip("needs node, and OPENAI_NODE_FOLDER with the package openai", allow_module_level=True)


def test_every_call_of_the_client_that_is_served(server):
    script = Path(__file__).with_name("openai_client.mjs")
    run = subprocess.run([str(NODE), script, server.url, FOLDER], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert server.service.shelf.name in found["models"] and found["model"] == found["models"][0]
    assert found["generated"] == [[True, 7], [True, 8]] and found["linked"] and found["edited"]
    assert [kind for kind, _ in found["streamed"]][-1] == "image_generation.completed"
    assert all(there for _, there in found["streamed"]) and len(found["streamed"]) > 1
    assert found["streamed_edit"] == ["image_edit.partial_image", "image_edit.completed"]
    assert found["varied"] == [True, True]
    assert found["refused"] == {
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "count": ["BadRequestError", 400, None, "n"],
        "mask": ["BadRequestError", 400, None, "mask"],
    }
