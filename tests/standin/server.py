"""The server that is not there: routes are kept, events are collected in `sent`."""

from __future__ import annotations

from types import SimpleNamespace


class _Routes(list):
    """Takes handlers as aiohttp's table does; entries are (method, path, handler)."""

    def _add(self, method: str, path: str):
        return lambda handler: self.append((method, path, handler)) or handler

    def get(self, path: str, **_):
        return self._add("GET", path)

    def post(self, path: str, **_):
        return self._add("POST", path)


class _Queue:
    def __init__(self) -> None:
        self.flags: dict = {}

    def set_flag(self, name: str, value) -> None:
        self.flags[name] = value


class PromptServer:
    instance: PromptServer

    def __init__(self, loop) -> None:
        PromptServer.instance = self
        self.loop, self.routes, self.prompt_queue = loop, _Routes(), _Queue()
        self.app = SimpleNamespace(on_shutdown=[], on_cleanup=[])
        self.client_id, self.last_node_id, self.sent = None, None, []

    def send_sync(self, event: str, data, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append(("progress_text", (node_id, text), sid))
