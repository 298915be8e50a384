"""`fetch` against a server of this machine: what is said, resumed, checked and refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from trainers.cli import main
from trainers.downloads import catalog
from trainers.downloads.catalog import Published, Repository
from trainers.downloads.fetch import fetch, size_of
from trainers.downloads.http import download
from trainers.errors import UserError

BODY = bytes(range(256)) * 4000


@pytest.fixture
def server(monkeypatch):
    """Serves `files` with ranges; `cut`: after how many bytes the next answer breaks off; `asked`: path and range."""
    state = SimpleNamespace(files={}, cut=None, asked=[], tag='"one"')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, wanted = self.path.partition("?")[0], self.headers.get("Range")
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            body, start = state.files[name], 0
            if wanted and self.headers.get("If-Range") == state.tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.tag)
            self.end_headers()
            end, state.cut = state.cut or len(body), None
            self.wfile.write(body[start:end])

        def do_HEAD(self):
            self.send_response(200 if self.path in state.files else 404)
            self.send_header("Content-Length", str(len(state.files.get(self.path, b""))))
            self.end_headers()

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    yield state
    listening.shutdown()
    listening.server_close()


def tgz(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("UP", ".."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.files["/a"], server.cut = BODY, 300_000
    found = download(f"{server.url}/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY and found == hashlib.sha256(BODY).hexdigest()
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_another_command_goes_on_too(server, tmp_path, monkeypatch):
    server.files["/a"], server.cut = BODY, 300_000
    monkeypatch.setattr("trainers.downloads.http.ATTEMPTS", 1)
    with pytest.raises(UserError, match="what was received is kept, run the command again"):
        download(f"{server.url}/a", tmp_path / "a", pause=0)
    assert not (tmp_path / "a").exists()
    download(f"{server.url}/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY and server.asked[-1][1] == "bytes=300000-"


def test_a_file_that_has_changed_on_the_server_is_begun_again(server, tmp_path, monkeypatch):
    server.files["/a"], server.cut = BODY, 300_000
    monkeypatch.setattr("trainers.downloads.http.ATTEMPTS", 1)
    with pytest.raises(UserError):
        download(f"{server.url}/a", tmp_path / "a", pause=0)
    server.files["/a"], server.tag = BODY[::-1], '"two"'
    download(f"{server.url}/a", tmp_path / "a", pause=0)
    assert (tmp_path / "a").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 7}])
def test_a_file_that_is_not_the_expected_one_is_removed(server, tmp_path, wrong):
    server.files["/a"] = BODY
    with pytest.raises(UserError, match="is not what was expected"):
        download(f"{server.url}/a", tmp_path / "a", **wrong, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_does_not_have_is_named(server, tmp_path):
    with pytest.raises(UserError, match="the server answers 404"):
        download(f"{server.url}/none", tmp_path / "a", pause=0)


def test_a_file_of_hugging_face_is_checked_by_what_the_server_says(server, tmp_path):
    server.files["/o/r/resolve/main/d/a"] = BODY
    sibling = {"rfilename": "d/a", "size": len(BODY), "lfs": {"sha256": "0" * 64}}
    server.files["/api/models/o/r/revision/main"] = json.dumps({"siblings": [sibling]}).encode()
    item = Published("a", "vae", "https://huggingface.co/o/r/resolve/main/d/a", "page", "MIT")
    with pytest.raises(UserError, match="is not what was expected"):
        fetch(item, tmp_path)
    sibling["lfs"]["sha256"] = hashlib.sha256(BODY).hexdigest()
    server.files["/api/models/o/r/revision/main"] = json.dumps({"siblings": [sibling]}).encode()
    assert fetch(item, tmp_path) == "checksum as the server gives it"
    assert (tmp_path / "vae" / "a").read_bytes() == BODY


def test_a_repository_becomes_a_folder_when_it_is_complete(server, tmp_path):
    names = ["model.safetensors", "config.json", "README.md", "../out.json", "sub/other.json"]
    listed = {"siblings": [{"rfilename": name, "size": 3} for name in names]}
    server.files["/api/models/o/r/revision/main"] = json.dumps(listed).encode()
    server.files["/o/r/resolve/main/model.safetensors"] = b"abc"
    item = Repository("r", "identity_reward", "o/r", "MIT")
    with pytest.raises(UserError, match="404"):
        fetch(item, tmp_path)
    assert not (tmp_path / "identity_reward" / "r").exists()
    server.files["/o/r/resolve/main/config.json"] = b"{ }"
    fetch(item, tmp_path)
    found = tmp_path / "identity_reward" / "r"
    assert sorted(p.name for p in found.iterdir()) == ["config.json", "model.safetensors"]
    assert [path for path, _ in server.asked].count("/o/r/resolve/main/model.safetensors") == 1


def test_an_archive_is_unpacked_without_its_outer_folder(server, tmp_path):
    server.files["/a.tgz"] = tgz(**{"outer__model_config.json": b"{}", "outer__checkpoint-1__x": b"1"})
    said = fetch(Published("reward", "identity_reward", f"{server.url}/a.tgz", "p", "MIT", archive=True), tmp_path)
    assert "the server gives no checksum; SHA-256 " in said
    place = tmp_path / "identity_reward"
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()) == [
        "reward/checkpoint-1/x",
        "reward/model_config.json",
    ]


@pytest.mark.parametrize("content", [b"no archive", tgz(UP__out=b"x")], ids=["no archive", "outside"])
def test_an_archive_that_leads_out_or_is_none_is_refused(server, tmp_path, content):
    server.files["/a.tgz"] = content
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch(Published("r", "loras", f"{server.url}/a.tgz", "p", "MIT", archive=True), tmp_path)
    assert not (tmp_path / "loras" / "r").exists() and not (tmp_path / "out").exists()


def test_a_size_that_is_not_published_is_read_from_the_server(server):
    server.files["/a.tgz"] = BODY
    assert size_of(Published("a", "loras", f"{server.url}/a.tgz", "", "MIT", archive=True)) == len(BODY)
    siblings = [{"rfilename": name, "size": size} for name, size in (("b", 3), ("a.json", 5), ("c.txt", 7))]
    server.files["/api/models/someone/some/revision/main"] = json.dumps({"siblings": siblings}).encode()
    assert size_of(Repository("Some", "identity_reward", "someone/some", "MIT")) == 12
    with pytest.raises(UserError, match="no answer"):
        size_of(Published("a", "loras", f"{server.url}/none", "", "MIT"))


def test_nothing_is_asked_of_a_server_unless_it_is_told_to(server, tmp_path, monkeypatch, capsys):
    item = Published("a.safetensors", "vae", f"{server.url}/a", "https://example.org/a", "MIT", len(BODY))
    monkeypatch.setitem(catalog.TASKS, "vace", (item,))
    server.files["/a"] = BODY
    assert main(["fetch", "vace", "--models", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "vae/a.safetensors" in said and "missing" in said and "MIT" in said and "https://example.org/a" in said
    assert not server.asked
    assert main(["fetch", "vace", "--models", str(tmp_path), "--download"]) == 0
    assert main(["fetch", "vace", "--models", str(tmp_path)]) == 0
    assert "nothing is missing" in capsys.readouterr().out and len(server.asked) == 1


def test_every_file_of_the_catalogue_has_a_source_and_a_folder():
    for item in {item for items in catalog.TASKS.values() for item in items}:
        assert item.page.startswith("https://") and item.folder and item.licence
        assert isinstance(item, Repository) or item.url.startswith("https://")
        assert getattr(item, "sha256", None) is None or len(item.sha256) == 64
