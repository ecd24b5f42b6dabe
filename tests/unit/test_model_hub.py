"""Pushing an exported model, by huggingface_hub itself, to a server on this machine in place of the Hub."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import gvm_ray.run
from gvm_ray.cli import main
from gvm_ray.exceptions import ConfigError, SystemFailure
from gvm_ray.model_hub import check_push, push_model

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


class FakeHub(ThreadingHTTPServer):
    """Answers like the Hub to the requests that make a repository and a commit in it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.refuses: dict[str, tuple[int, str]] = {}  # path -> status and message
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}  # of the commit
        self.large: dict[str, bytes] = {}  # by digest
        self.message = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user", "auth": {}}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/me/m", "id": "me/m"}
        if "/preupload/" in path:
            files = [each["path"] for each in json.loads(body)["files"]]
            kinds = {True: "lfs", False: "regular"}
            return {
                "files": [
                    {"path": name, "uploadMode": kinds[name.endswith(".safetensors")], "shouldIgnore": False}
                    for name in files
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            return {
                "transfer": "basic",
                "objects": [
                    {**each, "actions": {"upload": {"href": f"{self.url}/large/{each['oid']}"}}} for each in wanted
                ],
            }
        if path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = body
        if "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
        return {"commitUrl": f"{self.url}/me/m/commit/1", "commitOid": "1", "success": True}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.message = value["summary"]
                case "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]


class _Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, message = self.server.refuses.get(self.path, (200, ""))
        if self.headers["Authorization"] != "Bearer hf_good" and self.path.startswith("/api/whoami"):
            status, message = 401, "Invalid username or password."
        content = {"error": message} if message else self.server.answer(self.path, body)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, for which the server has no answers
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_model_is_one_commit_in_a_private_repository(hub: FakeHub, model: Path) -> None:
    check_push("me/m")
    assert hub.created == []  # not before there is a model
    assert push_model(model, "me/m") == f"{hub.url}/me/m/commit/1"
    (created,) = hub.created
    assert (created["name"], created["organization"], created["visibility"]) == ("m", "me", "private")
    assert hub.files == {"config.json": b"{}", "model.safetensors": b"weights"}
    assert hub.message == "Model trained with gvm_ray"


def test_the_command_pushes_what_the_run_exported(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gvm_ray.run, "train", lambda *arguments, **options: None)
    run = ["--set", f"runs_dir={model.parent.parent}", "--set", f"name={model.parent.name}"]
    assert main(["train", str(QUICKSTART), *run, "--push-to-hub", "me/m"]) == 0
    assert capsys.readouterr().out.endswith(f"model pushed: {hub.url}/me/m/commit/1\n")
    assert "model.safetensors" in hub.files


# --- before the run ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("repo_id", "message"),
    [("m", "has no owner; write --push-to-hub OWNER/m"), ("me/m//x", "isn't the name of a repository: Repo id")],
)
def test_a_wrong_name_is_refused(hub: FakeHub, repo_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_push(repo_id)


def test_without_a_login_it_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="run `hf auth login`, or set HF_TOKEN"):
        check_push("me/m")


def test_a_login_that_the_hub_does_not_take_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(ConfigError, match=r"the Hub doesn't take the login \(.*\); run `hf auth login` again"):
        check_push("me/m")


def test_offline_it_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set; unset it"):
        check_push("me/m")


def test_without_a_network_it_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ConfigError, match=r"Hub can't be reached \(.*\); leave the option out"):
        check_push("me/m")


# --- after the run ----------------------------------------------------------------------------------------------------
def test_a_refused_upload_says_where_the_model_is(hub: FakeHub, model: Path) -> None:
    hub.refuses["/api/repos/create"] = (403, "You don't have the rights to create a model under this namespace")
    hub.refuses["/api/models/me/m"] = (404, "Repository not found")
    with pytest.raises(SystemFailure) as failure:
        push_model(model, "me/m")
    assert "You don't have the rights to create a model" in str(failure.value)
    assert f"`hf upload me/m {model}`, or the command again with --resume" in str(failure.value)


def test_an_upload_that_breaks_off_says_so_too(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemFailure, match=r"Hub can't be reached \(.*hf upload me/m"):
        push_model(model, "me/m")
