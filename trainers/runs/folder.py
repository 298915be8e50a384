"""A run's folder: everything that outlives its process, and where its parts lie."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import UserError
from ..files import full_disk_explained, read_regular, sweep, write_atomic
from ..processes import host, start_token
from .status import RunStatus, read_status

if TYPE_CHECKING:
    from ..config import TrainConfig

RUN_ID = re.compile(r"[a-z0-9-]{1,100}")
REQUESTS = ("stop", "save", "sample")
PARTS = ("control", "checkpoints", "evaluation", "samples", "exports")
LONGEST_NAME = 60
LARGEST = 1 << 63  # no count is larger; Python's integers have no end, its floats have
EXPORT = re.compile(r".+-(\d{6,})\.safetensors")
EVALUATION = {"reward_mean": float, "win": float, "win_low": float, "win_high": float, "margin": float}
T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """A LoRA file written by a run."""

    iteration: int
    path: Path


def run_name(name: str | None, config: TrainConfig) -> str:
    """What a run's id begins with: `name`, else the preset, in lower case with dashes, at most 60 characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", (name or config.preset).lower())
    return plain[:LONGEST_NAME].strip("-") or "run"


class RunFolder:
    """`config.yaml` (frozen), `status.json`, `metrics.jsonl`, `curve.png`, `log.txt`, `control/`, `checkpoints/`,
    `evaluation/`, `samples/`, `exports/` of one run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"{self.path} is not a run: it has no config.yaml")

    @classmethod
    def create(cls, root: str | Path, config: TrainConfig, name: str | None = None) -> RunFolder:
        """A new folder under `root`, named `<name or preset>-<UTC date>-<time>-<4 hex>`. Paths are frozen absolute."""
        run_id = f"{run_name(name, config)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        path = Path(root) / run_id
        for part in PARTS:
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
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def encodings_folder(self) -> Path:
        """Encoded texts and references, shared with the runs beside this one."""
        return self.path.parent / "encodings"

    @property
    def samples_folder(self) -> Path:
        return self.path / "samples"

    @property
    def exports_folder(self) -> Path:
        return self.path / "exports"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def curve_file(self) -> Path:
        return self.path / "curve.png"

    def config(self) -> TrainConfig:
        """The frozen configuration. Raises UserError when it cannot be read."""
        from ..config import read_config

        return read_config(self.path / "config.yaml")

    def changed(self) -> list[int]:
        """Times in ns at which its status, metrics and exports last changed."""
        files = (self.path / "status.json", self.path / "metrics.jsonl", self.exports_folder)
        return [path.stat().st_mtime_ns for path in files if path.exists()]

    def require_exists(self) -> None:
        """Raises UserError when the folder was deleted: writing would make a part of it anew."""
        if not (self.path / "config.yaml").is_file():
            raise UserError(f"the folder of run {self.id} was deleted; the run ends")

    def prepare(self) -> None:
        """Before a process of the run starts: make missing parts, remove what killed writers left, forget old
        requests."""
        for part in PARTS:
            (self.path / part).mkdir(exist_ok=True)
            sweep(self.path / part)
        sweep(self.path)
        for name in REQUESTS:
            self.take(name)

    # --- status ------------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """The status as last written; a running run that was asked to stop is `stopping`."""
        status = read_status(self.path / "status.json")
        if status.state in ("starting", "running") and (self.path / "control" / "stop").exists():
            return status.model_copy(update={"state": "stopping"})
        return status

    def set_status(self, **fields: Any) -> None:
        """Update `fields` of the status. A process that sets `starting` or `running` signs with its process.

        Raises UserError when the run was deleted.
        """
        self.require_exists()
        status = read_status(self.path / "status.json")
        values = {} if status.state == "damaged" else status.model_dump()
        values |= fields
        if fields.get("state") in ("starting", "running") and "pid" not in fields and values.get("pid") != os.getpid():
            values |= {"pid": os.getpid(), "pid_started": start_token(os.getpid())}
        values |= {"host": host(), "updated": time.time()}
        write_atomic(self.path / "status.json", json.dumps(_finite(values), indent=1) + "\n", sync=False)

    # --- checkpoints and exports -------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = (p for p in self.checkpoints_folder.glob("[0-9]*") if p.name.isascii() and p.name.isdigit())
        return sorted((p for p in found if (p / "progress.json").is_file()), key=lambda p: int(p.name))

    def export_path(self, iteration: int) -> Path:
        return self.exports_folder / f"{self.id}-{iteration:06d}.safetensors"

    def exports(self) -> list[Export]:
        """LoRA files that the run has written, oldest first."""
        found = ((p, EXPORT.fullmatch(p.name)) for p in self.exports_folder.glob("*.safetensors"))
        return sorted((Export(int(m[1]), p) for p, m in found if m), key=lambda export: export.iteration)

    def newest(self) -> Export | None:
        """The newest export."""
        return next(reversed(self.exports()), None)

    def best(self) -> Export | None:
        """The export of the best evaluation by margin, the newer of equals; the newest where none is measured."""
        exports = {export.iteration: export for export in self.exports()}
        measured = [row for row in self.evaluations() if row["iteration"] in exports]
        if not measured:
            return self.newest()
        return exports[max(measured, key=lambda row: (row["margin"], row["iteration"]))["iteration"]]

    # --- metrics -----------------------------------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; numbers that are not finite become null. Raises UserError when the disk is
        full."""
        self.require_exists()
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
            lines = read_regular(self.path / "metrics.jsonl").decode(errors="replace").splitlines()
        except OSError:
            return []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and type(row.get("iteration")) is int:
                rows.append({name: value for name, value in row.items() if _expected(name, value)})
        return rows

    def training(self) -> list[dict[str, Any]]:
        """The rows of training iterations."""
        return [row for row in self.read_metrics() if row.get("kind") == "train"]

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of complete evaluations: each has the numbers named in `EVALUATION`."""
        rows = (row for row in self.read_metrics() if row.get("kind") == "evaluation")
        return [row for row in rows if all(row.get(name) is not None for name in EVALUATION)]

    def truncate_metrics(self, iteration: int) -> None:
        """Forget rows after `iteration`: a resumed run writes them again."""
        rows = [row for row in self.read_metrics() if row["iteration"] <= iteration]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- measurements and clips --------------------------------------------------------------------------------------

    def write_measurement(self, of: int | Literal["base"], values: dict[str, Any]) -> None:
        """Keep the scores per held-out item of an iteration, or of the base policy, in `evaluation/`."""
        write_atomic(self._measurement(of), json.dumps(_finite(values)) + "\n")

    def read_measurement(self, of: int | Literal["base"], kind: type[T]) -> T | None:
        """That measurement as `kind(**values)`; None when it is not there or cannot be read."""
        try:
            values = json.loads(read_regular(self._measurement(of)))
            return kind(**values) if values else None
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def _measurement(self, of: int | Literal["base"]) -> Path:
        return self.path / "evaluation" / (f"{of:06d}.json" if isinstance(of, int) else f"{of}.json")

    def write_clips(self, iteration: int, items: Sequence[Any], videos: Iterable[Any], fps: float) -> list[Path]:
        """Animations `samples/<iteration>/<place>-<item id>.webp` (lossless) of videos uint8 [n, F, H, W, 3].

        Raises UserError when the disk is full.
        """
        from ..pictures.clips import write_animation

        self.require_exists()
        folder = self.samples_folder / f"{iteration:06d}"
        with full_disk_explained(folder):
            return [
                write_animation(video, folder / f"{place:02d}-{_file_name(item.id)}.webp", fps)
                for place, (item, video) in enumerate(zip(items, videos, strict=True))
            ]

    def clips(self) -> list[list[Path]]:
        """The animations of every iteration that has some, newest iteration first."""
        folders = (p for p in self.samples_folder.glob("*") if p.is_dir())
        found = [sorted(folder.glob("*.webp")) for folder in sorted(folders, reverse=True)]
        return [clips for clips in found if clips]

    # --- requests ----------------------------------------------------------------------------------------------------

    def request(self, name: str) -> None:
        """Ask the running process to `stop`, `save` or `sample`."""
        if name not in REQUESTS:
            raise ValueError(f"request {name} is unknown; choose one of {', '.join(REQUESTS)}")
        (self.path / "control").mkdir(exist_ok=True)
        (self.path / "control" / name).touch()

    def requested(self, name: str) -> bool:
        """Whether `name` was requested and not taken yet."""
        return (self.path / "control" / name).exists()

    def take(self, name: str) -> bool:
        """Whether `name` was requested since it was last taken."""
        try:
            (self.path / "control" / name).unlink()
        except FileNotFoundError:
            return False
        return True

    # --- log ---------------------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Add a line with the local time to log.txt."""
        with contextlib.suppress(OSError), open(self.log_file, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of log.txt, empty when there is none; a log of any size is read in constant time."""
        if not self.log_file.is_file():
            return ""
        try:
            with open(self.log_file, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _expected(name: str, value: Any) -> bool:
    """Whether a metric has the type that readers rely on: texts are texts, everything else is a finite number or
    null."""
    if name == "kind":
        return isinstance(value, str)
    if type(value) is int:
        return abs(value) < LARGEST
    return value is None or (type(value) is float and math.isfinite(value))


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60] or "item"
