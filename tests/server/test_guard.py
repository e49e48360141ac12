"""Who may call: host names, pages of other origins, keys; and where the server may be started."""

import base64
import socket

import pytest

from latent_diffusion.cli.main import main
from latent_diffusion.server.limits import ServeSettings

KEY = "correct-horse"


def test_a_name_that_points_here_is_refused(server):
    """DNS rebinding: a page under evil.example is given this machine's address after it has been loaded."""
    port = server.url.rpartition(":")[2]
    refused = server.call("GET", "/about", headers={"host": f"evil.example:{port}"})
    assert refused.status_code == 403 and "evil.example" in refused.json()["error"]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST", "[::1]:7860"):
        assert server.call("GET", "/about", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_a_page_of_another_origin_is_refused(server, origin):
    refused = server.call("POST", "/jobs", json={"prompt": "x"}, headers={"origin": origin})
    assert refused.status_code == 403 and "--cors" in refused.json()["error"]
    assert server.call("GET", "/about", headers={"origin": server.url}).status_code == 200


def test_cors_and_keys(start, tiny_folder):
    running = start(ServeSettings(model=str(tiny_folder), api_key=KEY, cors=("http://page.example",)))
    page = {"origin": "http://page.example"}
    asked = running.call("OPTIONS", "/jobs", headers={**page, "access-control-request-method": "POST"})
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "http://page.example"
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"Basic {basic}"}, {"x-api-key": KEY}):
        allowed = running.call("GET", "/about", headers={**headers, **page})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "http://page.example"
    for headers in (
        {},
        {"authorization": "Bearer wrong-key"},
        {"authorization": "Basic ???"},
        {"authorization": "Basic"},
    ):
        refused = running.call("GET", "/about", headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Basic"
    assert running.call("GET", "/about", headers={"host": "any.name", "x-api-key": KEY}).status_code == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "0.0.0.0"],
        ["--host", "192.168.1.5"],
        ["--host", "example.org"],
        ["--cors", "*"],
        ["--api-key", "short"],
        ["--lora-folder", "no-such-folder"],
        ["--model-folder", "no-such-folder"],
    ],
)
def test_an_unsafe_start_is_refused_before_the_model_is_loaded(here, capsys, arguments):
    assert main(["serve", *arguments, "--model", "no-such-model"]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_port_in_use_is_found_before_the_model_is_loaded(here, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1]), "--model", "no-such-model"]) == 6
    assert "--port" in capsys.readouterr().err


def test_the_printed_address_can_be_connected_to_at_once(here, capsys, monkeypatch, tiny_folder):
    def run(server, sockets) -> None:
        port = int(capsys.readouterr().out.split()[0].rstrip("/").rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()

    monkeypatch.setattr("uvicorn.Server.run", run)
    assert main(["serve", "--port", "0", "--model", str(tiny_folder), "--device", "cpu"]) == 0


def test_a_model_that_is_missing_ends_the_command(here, capsys):
    assert main(["serve", "--port", "0", "--model", "no-such-model"]) == 4
