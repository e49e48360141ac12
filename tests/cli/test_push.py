"""`push` uploads a folder to the hub, here one on this machine, and names what is wrong in one line."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from latent_diffusion.cli.main import app, main

hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """The three calls that an upload of small files makes."""

    seen: list[tuple[str, bytes]]
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        type(self).seen.append((self.path, body))
        place = f"http://{self.headers['Host']}/me/style"
        answer: dict = {"url": place, "commitUrl": f"{place}/commit/abc", "commitOid": "abc"}
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        data = json.dumps(answer).encode()
        self.send_response(type(self).status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args) -> None:
        """Print nothing."""


@pytest.fixture
def endpoint(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.seen, Hub.status = [], 200
    real = hub.HfApi
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "HfApi", lambda: real(endpoint=place, token="hf_secret"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # as the command sets it before the import
    yield Hub
    server.shutdown()


@pytest.fixture
def result(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "style.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("# style\n")
    (folder / ".tmp-1-half").write_bytes(b"half")
    return folder


def test_every_file_of_the_folder_is_uploaded(endpoint, result):
    done = CliRunner().invoke(app, ["push", str(result), "me/style", "--private", "--message", "first"])
    assert done.exit_code == 0 and done.output.strip().endswith("/me/style/commit/abc")
    paths = [path for path, _ in endpoint.seen]
    assert paths[0] == "/api/repos/create" and paths[-1] == "/api/models/me/style/commit/main"
    assert b"private" in endpoint.seen[0][1]
    lines = [json.loads(line) for line in endpoint.seen[-1][1].splitlines()]
    assert lines[0]["value"]["summary"] == "first"
    files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    assert files == {"style.safetensors": b"weights", "README.md": b"# style\n"}


def test_a_refusal_is_one_line_with_advice(endpoint, result, capsys):
    endpoint.status = 401
    assert main(["push", str(result), "me/style"]) == 6
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "hf auth login" in message and "hf_secret" not in message


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("absent", 4, "there is no such folder"),
        ("empty", 4, "holds no weights"),
        ("name", 2, "not the name of a repos"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_a_call(endpoint, result, tmp_path, capsys, change, code, words):
    folder, repository = result, "me/style"
    if change == "absent":
        folder = tmp_path / "nothing"
    elif change == "empty":
        (folder / "style.safetensors").unlink()
    else:
        repository = "me/my style!"
    assert main(["push", str(folder), repository]) == code
    assert words in capsys.readouterr().err and not endpoint.seen


def test_offline_is_respected(result, capsys, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(result), "me/style"]) == 6
    assert "HF_HUB_OFFLINE forbids the upload" in capsys.readouterr().err


def test_no_connection_is_one_line(endpoint, result, capsys, monkeypatch):
    real = hub.HfApi
    monkeypatch.setattr(hub, "HfApi", lambda: real().__class__(endpoint="http://127.0.0.1:9", token="hf_secret"))
    assert main(["push", str(result), "me/style"]) == 6
    assert "the hub cannot be reached" in capsys.readouterr().err
