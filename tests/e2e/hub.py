"""A server in the place of Hugging Face, which the ComfyUI of the tests is given as HF_ENDPOINT."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

BLOCK = 1 << 20


@contextmanager
def serving_files() -> Iterator[SimpleNamespace]:
    """`url`; `files`: what it has, by repository and name.

    A file that is longer than a block waits after its first one, until `/go` is asked for.
    """
    state = SimpleNamespace(files={}, go=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0].strip("/")
            if path == "go":
                state.go.set()
                self.answer(b"", 0)
            elif path.startswith("api/models/"):
                repository = path.removeprefix("api/models/").removesuffix("/revision/main")
                siblings = [sibling(name, body) for (owner, name), body in state.files.items() if owner == repository]
                self.answer(json.dumps({"siblings": siblings}).encode(), 0)
            else:
                repository, _, name = path.partition("/resolve/main/")
                wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
                self.answer(state.files[repository, name], int(wanted))

        def answer(self, body: bytes, start: int):
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", '"one"')
            self.end_headers()
            for place in range(start, len(body), BLOCK):
                if place:
                    state.go.wait(60)
                self.wfile.write(body[place : place + BLOCK])

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield state
    finally:
        listening.shutdown()
        listening.server_close()


def sibling(name: str, body: bytes) -> dict:
    return {"rfilename": name, "size": len(body), "lfs": {"sha256": hashlib.sha256(body).hexdigest()}}
