"""A run's folder: everything that outlives its process."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UserError
from .atomic import full_disk_explained, write_atomic
from .processes import started

if TYPE_CHECKING:
    from ..config import TrainConfig

RUN_ID = re.compile(r"[a-z0-9-]+")
REQUESTS = ("stop", "save", "sample")
FIELDS = {
    **dict.fromkeys(
        ("pid", "pid_started", "group", "iteration", "iterations", "phase_done", "eta_seconds", "updated"), (int, float)
    ),
    **dict.fromkeys(("state", "phase", "message", "last_error"), str),
    "gpus": list,
}
T = TypeVar("T")


def run_name(name: str | None, config: TrainConfig) -> str:
    """What a run's id begins with: `name`, else the preset, in lower case with dashes."""
    return re.sub(r"[^a-z0-9]+", "-", (name or config.preset).lower()).strip("-") or "run"


class RunFolder:
    """`config.yaml` (frozen), `status.json`, `metrics.jsonl`, `log.txt`, `control/`, `checkpoints/`, `evaluation/`,
    `samples/`, `exports/` of one run.

    Status: `state` is queued, starting, running, stopping, stopped, finished or failed; `pid` and `pid_started` name the
    process; `iteration` of `iterations`, `phase` and `phase_done` (0 to 1), `eta_seconds`, `message`, `last_error`; `updated` in
    seconds since the epoch.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is not a run: it has no config.yaml")

    @classmethod
    def create(cls, root: str | Path, config: TrainConfig, name: str | None = None) -> RunFolder:
        """A new folder under `root`, named by us: `<name or preset>-<UTC date>-<time>-<4 hex>`. Paths are frozen absolute."""
        run_id = f"{run_name(name, config)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        path = Path(root) / run_id
        for part in ("control", "checkpoints", "evaluation", "samples", "exports"):
            (path / part).mkdir(parents=True)
        write_atomic(path / "config.yaml", config.with_absolute_paths().to_yaml())
        run = cls(path)
        run.set_status(state="queued", iteration=0, iterations=config.iterations)
        return run

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """The `run_name` with which it was created."""
        return self.id.rsplit("-", 3)[0]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    def config(self) -> TrainConfig:
        """The frozen configuration. Raises UserError when it cannot be read."""
        from ..config import read_config

        return read_config(self.path / "config.yaml")

    # --- status ----------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The status as last written; a running run that was asked to stop is `stopping`. Fields of another kind than ours are
        left out.
        """
        written = _read_object(self.path / "status.json")
        status = {name: value for name, value in written.items() if isinstance(value, FIELDS.get(name, object))}
        if "state" not in status:
            return {"state": "failed", "last_error": "status.json cannot be read"}
        if status["state"] in ("starting", "running") and (self.path / "control" / "stop").exists():
            status["state"] = "stopping"
        return status

    def set_status(self, **fields: Any) -> None:
        """Lay `fields` over the status. Whoever says `starting` or `running` signs with its process."""
        status = _read_object(self.path / "status.json") | fields
        if fields.get("state") in ("starting", "running") and "pid" not in fields and status.get("pid") != os.getpid():
            status |= {"pid": os.getpid(), "pid_started": started(os.getpid())}
        status["updated"] = time.time()
        write_atomic(self.path / "status.json", json.dumps(_finite(status), indent=1) + "\n", sync=False)

    # --- metrics ---------------------------------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; numbers that are not finite become null. Raises UserError when the disk is full."""
        path = self.path / "metrics.jsonl"
        with full_disk_explained(path), open(path, "ab+") as file:
            torn = False
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(_finite(row)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows in order; a line torn by a crash, or without an iteration, is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
        return rows

    def truncate_metrics(self, iteration: int) -> None:
        """Forget rows after `iteration`: a resumed run writes them again."""
        rows = [row for row in self.read_metrics() if row["iteration"] <= iteration]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- measurements and clips ------------------------------------------------------------------------------------------

    def write_measurement(self, iteration: int, values: dict[str, Any]) -> None:
        """Keep an evaluation's scores per item in `evaluation/<iteration>.json`."""
        write_atomic(self.path / "evaluation" / f"{iteration:06d}.json", json.dumps(_finite(values)) + "\n")

    def read_measurement(self, iteration: int, kind: type[T]) -> T | None:
        """That evaluation as `kind(**values)`; None when it is not there or cannot be read."""
        values = _read_object(self.path / "evaluation" / f"{iteration:06d}.json")
        return kind(**values) if values else None

    def write_clips(self, iteration: int, items: Sequence[Any], videos: Iterable[Any], fps: float) -> list[Path]:
        """Animations `samples/<iteration>/<place>-<item id>.webp` (lossless) of videos uint8 [n, F, H, W, 3].

        Raises UserError when the disk is full.
        """
        from ..clips import write_animation

        folder = self.samples / f"{iteration:06d}"
        with full_disk_explained(folder):
            return [
                write_animation(video, folder / f"{place:02d}-{_file_name(item.id)}.webp", fps)
                for place, (item, video) in enumerate(zip(items, videos, strict=False))
            ]

    # --- requests --------------------------------------------------------------------------------------------------------

    def request(self, name: str) -> None:
        """Ask the running process to `stop`, `save` or `sample`."""
        if name not in REQUESTS:
            raise ValueError(f"request {name} is unknown; choose one of {', '.join(REQUESTS)}")
        (self.path / "control").mkdir(exist_ok=True)
        (self.path / "control" / name).touch()

    def take(self, name: str) -> bool:
        """Whether `name` was requested since it was last taken."""
        try:
            (self.path / "control" / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def clear_requests(self) -> None:
        """Forget requests made to a process that is gone: before a new one starts."""
        for name in REQUESTS:
            self.take(name)

    # --- log -------------------------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Add a line with the local time to log.txt."""
        with open(self.log_file, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of log.txt, empty when there is none; a log of any size is read in constant time."""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60] or "item"
