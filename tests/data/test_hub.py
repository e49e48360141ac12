"""Data sets of the hub, by its own client from a server on this machine: nothing is fetched without permission."""

import hashlib
import io
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.config import RunConfig, read_config
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.places.hub import on_hub
from latent_diffusion.errors import ConfigError, DataError, ResourceError
from latent_diffusion.training.state.pinned_data import with_pinned_data
from latent_diffusion.training.state.training_state import newest_state

constants = pytest.importorskip("huggingface_hub.constants")
OLD, NEW = "a" * 40, "b" * 40
NAME = "hf://datasets/me/cats"


class Hub(BaseHTTPRequestHandler):
    """The routes that a download needs: which commit a revision is, its files, and each file."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        found = re.fullmatch(
            r"/(?:api/datasets/me/cats/(revision|tree)|datasets/me/cats/(resolve))/([^/]+)(?:/(.+))?", path
        )
        if re.fullmatch("/api/datasets/me/cats", path):
            return self._json({"id": "me/cats", "sha": self.refs["main"]})
        if found is None:
            return self._missing("RepoNotFound")
        kind, commit = found.group(1) or found.group(2), self.refs.get(found.group(3), found.group(3))
        files = self.commits.get(commit)
        if files is None:
            return self._missing("RevisionNotFound")
        if kind == "revision":
            return self._json({"id": "me/cats", "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if kind == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": digest(data)} for name, data in files.items()
            ]
            return self._json(listed)
        data = files[found.group(4)]
        return self._answer(200, data, {"ETag": f'"{digest(data)}"', "X-Repo-Commit": commit})

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code):
        self._answer(404, b"{}", {"X-Error-Code": code})

    def _answer(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        """Print nothing."""


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch, encoded):
    """A hub with one data set of two commits; `main` is the older one."""
    files = {"README.md": b"# cats", "load.py": b"raise SystemExit", "metadata.jsonl": b""}
    files |= {f"{k}.png": encoded(seed=k) for k in range(3)}
    rows = [json.dumps({"file_name": f"{k}.png", "text": f"cat {k}"}) for k in range(3)]
    files["metadata.jsonl"] = "\n".join(rows).encode()
    newer = {**files, "metadata.jsonl": files["metadata.jsonl"].replace(b"cat 1", b"a big cat")}
    values = {"commits": {OLD: files, NEW: newer}, "refs": {"main": OLD, "v2": NEW}, "asked": []}
    handler = type("Handler", (Hub,), values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def read(path=NAME, **settings) -> ImageFolder:
    return ImageFolder(DataConfig(path=path, size=16, **settings), seed=7)


def captions(data) -> list[str]:
    return [data.first_caption(row) for row in range(len(data))]


def test_nothing_is_fetched_without_permission(hub):
    with pytest.raises(DataError, match=r"cats' is not.* in the cache .* unless data\.download=true"):
        read()
    assert hub.asked == []


def test_what_was_fetched_once_is_read_without_the_hub(hub):
    assert captions(read(download=True)) == ["cat 0", "cat 1", "cat 2"]
    assert not any(name.endswith("load.py") for name in hub.asked), "code was fetched"
    hub.asked.clear()
    assert captions(read()) == captions(read(f"{NAME}@{OLD}", download=True)) == ["cat 0", "cat 1", "cat 2"]
    assert hub.asked == []
    hub.refs["main"] = NEW
    assert captions(read())[1] == "cat 1" and captions(read(download=True))[1] == "a big cat"


def test_a_revision_and_a_folder_of_it(hub, encoded):
    assert captions(read(f"{NAME}@v2", download=True))[1] == "a big cat"
    hub.commits[OLD] = {f"{part}/0.png": encoded(seed=len(part)) for part in ("small", "large")}
    hub.commits[OLD]["small/0.txt"] = b"a cat"
    assert captions(read(f"{NAME}/small", download=True)) == ["a cat"]
    assert not any("large" in name for name in hub.asked)
    with pytest.raises(DataError, match="no file lies at 'tiny'; the repository has small"):
        read(f"{NAME}/tiny", download=True)


def test_of_several_splits_one_is_named(hub, encoded):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tables = {}
    for part in ("train", "test"):
        rows = [{"image": {"bytes": encoded(seed=len(part)), "path": None}, "text": part}]
        parquet.write_table(arrow.Table.from_pylist(rows), stream := io.BytesIO())
        tables[f"data/{part}-00000-of-00001.parquet"] = stream.getvalue()
    hub.commits[OLD] = tables
    with pytest.raises(ConfigError, match=r"has the splits \['test', 'train'\]; name one, as .*/data/test-\*\.parq"):
        read(download=True)
    assert not any("parquet" in name for name in hub.asked), "both were fetched"
    data = read(f"{NAME}/data/train-*.parquet", download=True)
    assert captions(data) == ["train"] and not any("test-" in name for name in hub.asked)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("hf://datasets/me/cat", DataError, "the hub has no such data set, or not for you; check the name"),
        (f"{NAME}@v3", DataError, "has no such revision"),
        ("hf://me/cats", ConfigError, "names no data set of the hub; write hf://datasets/OWNER/NAME"),
        ("https://huggingface.co/datasets/me/cats", ConfigError, "names no data set of the hub; write hf://datasets/"),
        ("hf://datasets/me/..cats", ConfigError, "names no data set of the hub"),
        ("me/cats", DataError, "does not exist; give an image folder .* or hf://datasets/OWNER/NAME"),
    ],
)
def test_a_wrong_name_is_named_in_one_line(hub, path, kind, words):
    with pytest.raises(kind, match=words) as caught:
        read(path, download=True)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_error_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE forbids the download; unset it"):
        read(download=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match=r"the hub cannot be reached: .*leave data\.download out") as caught:
        read(download=True)
    assert "\n" not in str(caught.value)


def test_a_continued_run_keeps_its_commit(hub, tiny_folder, tmp_path, capsys):
    run = tmp_path / "run.yaml"
    run.write_text(
        f"output: {tmp_path}/run\nobjective: {{name: unet, init: {tiny_folder}}}\nsteps: 1\nbatch_size: 2\nthreads: 1\n"
        f"data: {{path: {NAME}, size: 32, download: true}}\n"
    )
    assert main(["train", str(run)]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["data"]["path"] == f"{NAME}@{OLD}"
    made = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert made["config"]["data"]["path"] == f"{NAME}@{OLD}"
    hub.refs["main"] = NEW
    hub.asked.clear()
    state = newest_state(tmp_path / "run" / "checkpoints")
    again = read_config(str(run), ["steps=2"])
    assert with_pinned_data(again, state, first=True).data["path"] == f"{NAME}@{OLD}" and hub.asked == []
    assert with_pinned_data(again, None, first=True).data["path"] == f"{NAME}@{NEW}"
    assert main(["train", str(run), "steps=2", f"data.path={NAME}@v2"]) == 2
    assert "a caption or the choice of pictures has changed" in capsys.readouterr().err


def test_every_source_has_a_commit(hub):
    data = {"download": True, "sources": [{"path": NAME}, {"path": f"{NAME}@v2"}, {"path": "here"}], "size": 16}
    run = RunConfig(output=Path("x"), objective={"name": "unet"}, data=data, steps=1, batch_size=1)
    paths = [one["path"] for one in with_pinned_data(run, None, first=True).data["sources"]]
    assert paths == [f"{NAME}@{OLD}", f"{NAME}@{NEW}", "here"]


def test_two_revisions_of_one_data_set_keep_each_its_own_commit(hub):
    data = {"download": True, "sources": [{"path": NAME}, {"path": f"{NAME}@v2"}], "size": 16}
    run = RunConfig(output=Path("x"), objective={"name": "unet"}, data=data, steps=1, batch_size=1)
    first = with_pinned_data(run, None, first=True)
    state = SimpleNamespace(values={"config": first.model_dump(mode="json")})
    assert with_pinned_data(run, state, first=True).data == first.data


def test_the_url_of_a_file_of_the_hub_is_a_url_like_others():
    assert not on_hub("https://huggingface.co/datasets/a/b/resolve/main/set-{000..127}.tar")
    assert on_hub("https://huggingface.co/datasets/a/b")
