"""A server that does not serve: `routes` keeps the routes, `sent` the events; `sockets` are the open ones."""

from __future__ import annotations

from types import SimpleNamespace

from aiohttp import web


class _Queue:
    def __init__(self) -> None:
        self.flags: dict = {}

    def set_flag(self, name: str, value) -> None:
        self.flags[name] = value


class PromptServer:
    instance: PromptServer

    def __init__(self, loop) -> None:
        PromptServer.instance = self
        self.loop, self.routes, self.prompt_queue = loop, web.RouteTableDef(), _Queue()
        self.app = SimpleNamespace(on_shutdown=[], on_cleanup=[])
        self.client_id, self.last_node_id, self.sent, self.sockets = None, None, [], {}

    def send_sync(self, event: str, data, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append(("progress_text", (node_id, text), sid))
