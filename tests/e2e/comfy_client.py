"""A client of a running ComfyUI, as its editor is: HTTP for requests, the websocket for events."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image


@dataclass
class Result:
    """The result of a queued graph. `outputs`: by node id, as in the history; `fresh`: nodes that were executed."""

    status: str
    outputs: dict
    messages: list
    fresh: set[str]

    @property
    def error(self) -> str:
        return next(
            (data["exception_message"].strip() for name, data in self.messages if name == "execution_error"), ""
        )

    @property
    def error_type(self) -> str:
        """As the editor shows it before the message."""
        return next((data["exception_type"] for name, data in self.messages if name == "execution_error"), "")

    @property
    def failed_node(self) -> str | None:
        return next((data["node_id"] for name, data in self.messages if name == "execution_error"), None)

    @property
    def interrupted(self) -> bool:
        return any(name == "execution_interrupted" for name, _ in self.messages)


class Client:
    """`base`: the server's base folder, `log`: what it has printed so far."""

    def __init__(self, port: int, base: Path, log: Path) -> None:
        self.port, self.base, self._log = port, base, log
        self.id = uuid.uuid4().hex

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **query):
        return self._call(Request(self._url(path, query)))

    def post(self, path: str, body: dict | None = None):
        data = json.dumps(body or {}).encode()
        return self._call(Request(self._url(path), data, {"Content-Type": "application/json"}))

    def bytes(self, path: str) -> bytes:
        with urlopen(self._url(path), timeout=60) as answer:
            return answer.read()

    def text(self, path: str) -> str:
        return self.bytes(path).decode()

    def object_info(self) -> dict:
        return self.get("/object_info")

    def queue(self, graph: dict) -> str:
        """The id of the queued prompt. Raises Refused when ComfyUI refuses it, or a part of it."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.id})
        if answer["node_errors"]:
            raise Refused(200, json.dumps(answer))
        return answer["prompt_id"]

    def run(self, graph: dict, seconds: float = 120) -> Result:
        return self.result(self.queue(graph), seconds)

    def result(self, prompt_id: str, seconds: float = 120) -> Result:
        """The result of a prompt, as soon as it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.get(f"/history/{prompt_id}").get(prompt_id)
            if found:
                messages = found["status"]["messages"]
                cached = {n for name, data in messages if name == "execution_cached" for n in data["nodes"]}
                return Result(
                    found["status"]["status_str"], found["outputs"], messages, set(found["prompt"][2]) - cached
                )
            time.sleep(0.05)
        raise AssertionError(
            f"prompt {prompt_id} has not ended after {seconds} s; the log ends with\n{self.log[-3000:]}"
        )

    def settle(self, seconds: float = 60) -> None:
        """Wait until nothing runs and nothing waits."""
        until = time.monotonic() + seconds
        while any(self.get("/queue").values()):
            assert time.monotonic() < until, f"the queue is not empty after {seconds} s"
            time.sleep(0.05)

    def pictures(self, shown: list[dict]) -> np.ndarray:
        """uint8 [N, H, W, 3] of a node's `images` output."""
        folders = {kind: self.base / kind for kind in ("output", "temp", "input")}
        files = [folders[s["type"]] / s["subfolder"] / s["filename"] for s in shown]
        return np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])

    def events(self) -> Events:
        return Events(self.port, self.id)

    def _url(self, path: str, query: dict | None = None) -> str:
        return f"http://127.0.0.1:{self.port}{path}" + (f"?{urlencode(query)}" if query else "")

    @staticmethod
    def _call(request: Request):
        try:
            with urlopen(request, timeout=60) as answer:
                body = answer.read()
        except HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None
        return json.loads(body) if body else None


class Refused(Exception):
    """An answer other than success. `problems`: of a refused graph, the errors by node id as (input, text)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {}
        errors = (answer if isinstance(answer, dict) else {}).get("node_errors") or {}
        self.problems = {
            node: [(e["extra_info"].get("input_name"), f"{e['message']}: {e['details']}") for e in found["errors"]]
            for node, found in errors.items()
        }


class Events:
    """The events of the websocket: `with client.events() as events: events.wait("progress")`."""

    def __init__(self, port: int, client_id: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        assert b"101" in self._stream.readline()
        while self._stream.readline().strip():
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()

    def wait(self, kind: str, seconds: float = 60) -> dict | bytes:
        """The next message of a kind: its data, or for `binary` the bytes (previews)."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._socket.settimeout(max(0.1, until - time.monotonic()))
            code, payload = self._frame()
            if code == 2 and kind == "binary":
                return payload
            if code == 1:
                message = json.loads(payload)
                if message["type"] == kind:
                    return message["data"]
        raise AssertionError(f"no `{kind}` in {seconds} s")

    def _frame(self) -> tuple[int, bytes]:
        """One message, whole: its opcode (1 text, 2 binary, others are control) and payload."""
        code, payload, last = 0, b"", False
        while not last:
            head, size = self._stream.read(2)
            last, code, size = bool(head & 0x80), head & 0x0F or code, size & 0x7F
            if size > 125:
                (size,) = struct.unpack(">H" if size == 126 else ">Q", self._stream.read(2 if size == 126 else 8))
            payload += self._stream.read(size)
        return code, payload
