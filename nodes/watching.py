"""Pushes changes of runs to the browsers that watch them, over ComfyUI's websocket.

A browser watches by a lease that expires, so that nothing is read when none does: not when all have closed the page,
slept, or lost the connection.
"""

from __future__ import annotations

import logging
import re
import threading
import time

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError, shown
from ..trainers.runs.cards import card, changes_with
from ..trainers.runs.registry import list_runs
from . import folders
from .requests import Body, field

EVENT = "identity_grpo.runs"
LEASE_SECONDS = 150.0
"""Browsers let the timers of a hidden page run once a minute."""
TICK_SECONDS = 0.5
MOST_WATCHERS = 64
CLIENT = re.compile(r"[A-Za-z0-9-]{1,64}")

logger = logging.getLogger(__name__)


class Watch:
    """The leases of browsers, by their websocket's id, and the thread that serves them while there are any."""

    def __init__(self) -> None:
        self._leases: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.ticks = 0

    def renew(self, client: str) -> None:
        """Raises UserError when too many watch."""
        with self._lock:
            if client not in self._leases and len(self._leases) >= MOST_WATCHERS:
                raise UserError(f"{MOST_WATCHERS} browsers watch runs already; close one of them")
            self._leases[client] = time.monotonic() + LEASE_SECONDS
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="identity-grpo-watch", daemon=True)
                self._thread.start()

    def end(self, client: str) -> None:
        with self._lock:
            self._leases.pop(client, None)

    def watchers(self) -> list[str]:
        """Those whose lease holds and whose websocket is open."""
        with self._lock:
            now, open_sockets = time.monotonic(), PromptServer.instance.sockets
            self._leases = {sid: end for sid, end in self._leases.items() if end > now and sid in open_sockets}
            return list(self._leases)

    def _serve(self) -> None:
        seen: dict[str, tuple] = {}
        while True:
            watchers = self.watchers()
            if not watchers:
                with self._lock:
                    if not self._leases:
                        self._thread = None
                        return
            try:
                self._tick(watchers, seen)
            except Exception:  # a folder that cannot be read now may be read at the next tick
                logger.exception("Identity-GRPO: the runs cannot be watched")
            time.sleep(TICK_SECONDS)

    def _tick(self, watchers: list[str], seen: dict[str, tuple]) -> None:
        self.ticks += 1
        runs = {run.id: run for run in list_runs(folders.runs_root())}
        changed = []
        for run_id, run in runs.items():
            sign = changes_with(run)
            if seen.get(run_id) != sign:
                seen[run_id] = sign
                changed.append(card(run))
        deleted = [run_id for run_id in seen if run_id not in runs]
        for run_id in deleted:
            del seen[run_id]
        for sid in watchers if changed or deleted else ():
            PromptServer.instance.send_sync(EVENT, {"runs": changed, "deleted": deleted}, sid)


watch = Watch()


def renew_watch(_request: web.Request, body: Body) -> dict:
    """Watch all runs for `seconds` from now on; `client` is the id of the browser's websocket."""
    client = _client(body)
    if client not in PromptServer.instance.sockets:
        raise UserError("this browser has no open websocket; it connects again by itself")
    watch.renew(client)
    return {"seconds": LEASE_SECONDS}


def end_watch(_request: web.Request, body: Body) -> dict:
    watch.end(_client(body))
    return {}


def _client(body: Body) -> str:
    client = field(body, "client", str)
    if not CLIENT.fullmatch(client):
        raise UserError(f"`client` must be the id of a websocket, not `{shown(client)}`")
    return client
