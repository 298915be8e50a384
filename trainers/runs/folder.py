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

from ..errors import UserError, shown
from ..files import full_disk_explained, read_regular, require_regular, sweep, write_atomic
from ..processes import host, start_token
from .metrics import Metrics
from .status import RunStatus, read_status

if TYPE_CHECKING:
    from ..config import RunConfig, TrainConfig

RUN_ID = re.compile(r"[a-z0-9-]{1,100}")
REQUESTS = ("stop", "save", "sample")
PARTS = ("control", "checkpoints", "evaluation", "samples", "exports", "logs")
LONGEST_NAME = 60
LOSSLESS_PIXELS = 1 << 14  # of a frame
LONGEST_TITLE = 100
TAIL = 1 << 16  # bytes of metrics.jsonl in which its last evaluation is looked for first
EXPORT = re.compile(r".+-(\d{6,})\.safetensors")
CLIP = re.compile(r"(\d{2,6})-.+\.webp")
REWARD_KIND = b"kind: reward\n"
T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """A LoRA file written by a run."""

    iteration: int
    path: Path


def run_name(name: str | None, config: RunConfig) -> str:
    """What a run's id begins with: `name`, else the preset, in lower case with dashes, at most 60 characters."""
    plain = re.sub(r"[^a-z0-9]+", "-", (name or config.preset).lower())
    return plain[:LONGEST_NAME].strip("-") or "run"


def is_run(path: str | Path) -> bool:
    """Whether the folder is a run's: it has a config.yaml, readable or not."""
    return os.path.lexists(os.path.join(path, "config.yaml"))


def make_folder(path: Path) -> Path:
    """Make the folder and those above it where they are missing. Raises UserError when a file is in its place."""
    _require_place(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _require_place(path: Path) -> None:
    for place in (path, path.parent):
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place} is not a folder; move it away, then try again")


class RunFolder:
    """`config.yaml` (frozen), `status.json`, `metrics.jsonl`, `curve.png`, `log.txt`, `title.txt`, `heartbeat.json`,
    `control/`, `checkpoints/`, `evaluation/`, `samples/`, `exports/`, `logs/` of one run. One that trains a reward has
    `reward/` in place of clips and exports.
    """

    def __init__(self, path: str | Path) -> None:
        if not is_run(path):
            raise UserError(f"{shown(os.path.abspath(path))} is not a run: it has no config.yaml")
        self.path = Path(path).resolve()

    @classmethod
    def create(cls, root: str | Path, config: RunConfig, name: str | None = None) -> RunFolder:
        """A new folder under `root`, named `<name or preset>-<UTC date>-<time>-<4 hex>`. Paths are frozen absolute."""
        run_id = f"{run_name(name, config)}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        path = Path(root) / run_id
        try:
            for part in PARTS:
                (path / part).mkdir(parents=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise UserError(f"{root} is a file, not a folder for runs; give another folder") from error
        write_atomic(path / "config.yaml", config.with_absolute_paths().to_yaml())
        run = cls(path)
        run.set_status(state="queued", iteration=0, iterations=config.iterations)
        return run

    @classmethod
    def copy_of(cls, root: str | Path, run_id: str, config: str) -> RunFolder:
        """The folder under `root` of a run that another machine has created, with its config.yaml; made if missing."""
        path = Path(root) / run_id
        if not is_run(path):
            for part in PARTS:
                make_folder(path / part)
            write_atomic(path / "config.yaml", config)
        return cls(path)

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """The `run_name` with which it was created."""
        return self.id.rsplit("-", 3)[0]

    @property
    def title(self) -> str:
        """What the user calls it; empty for a run that was not renamed."""
        try:
            return read_regular(self.path / "title.txt").decode(errors="replace").strip()[:LONGEST_TITLE]
        except OSError:
            return ""

    def rename(self, title: str) -> None:
        """Give it a title; an empty one removes it. The id stays, as does all that is named by it.

        The title is a file of its own, because the run's process rewrites the status all the time. Raises UserError for
        one that is longer than 100 characters or has line breaks or other control characters.
        """
        self.require_exists()
        title = title.strip()
        if len(title) > LONGEST_TITLE or not title.isprintable():
            raise UserError(
                f"the title `{shown(title)}` cannot be used; give at most {LONGEST_TITLE} letters without line breaks"
            )
        if title:
            write_atomic(self.path / "title.txt", title + "\n")
        else:
            (self.path / "title.txt").unlink(missing_ok=True)

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

    @property
    def kind(self) -> Literal["policy", "reward"]:
        """What it trains: the first line of config.yaml says so for a reward."""
        with contextlib.suppress(OSError):
            return "reward" if read_regular(self.path / "config.yaml").startswith(REWARD_KIND) else "policy"
        return "policy"

    def settings(self) -> RunConfig:
        """The frozen configuration. Raises UserError when it cannot be read."""
        from ..config import read_config

        return read_config(self.path / "config.yaml")

    def config(self) -> TrainConfig:
        """That of a run that trains a policy. Raises UserError also for one that trains a reward."""
        if self.kind == "reward":
            raise UserError(f"run {self.id} trains a reward and has no policy; choose a run of Train")
        return self.settings()

    @property
    def reward_folder(self) -> Path:
        """Where a run that trains a reward writes it, in the released layout, at its end."""
        return self.path / "reward"

    def has_reward(self) -> bool:
        return (self.reward_folder / "model_config.json").is_file()

    def changed(self) -> list[int]:
        """Times in ns at which its status, metrics and exports last changed."""
        files = (self.path / "status.json", self.path / "metrics.jsonl", self.exports_folder)
        return [path.stat().st_mtime_ns for path in files if path.exists()]

    def require_exists(self) -> None:
        """Raises UserError when the folder was deleted: writing would make a part of it anew.

        Raises OSError for one that cannot be read.
        """
        try:
            os.lstat(self.path / "config.yaml")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"the folder of run {self.id} was deleted or moved; the run ends") from None

    def prepare(self) -> None:
        """Before a process of the run starts: make missing parts, remove what killed writers left, forget old requests.

        Raises UserError when something else is in the place of a part.
        """
        _require_place(self.encodings_folder)
        for part in PARTS:
            sweep(make_folder(self.path / part))
        for file in (self.log_file, self.path / "metrics.jsonl"):
            if os.path.lexists(file) and not file.is_file():
                raise UserError(f"{file} is not a file; remove it, then start the run again")
        sweep(self.path)
        for name in REQUESTS:
            self.take(name)

    # --- status ------------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """The status as last written; one with a process that was asked to stop is `stopping`."""
        status = read_status(self.path / "status.json")
        if status.active and (self.path / "control" / "stop").exists():
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
        values |= {"host": host(), "folder": str(self.path), "updated": time.time()}
        try:
            write_atomic(self.path / "status.json", json.dumps(_json_ready(values), indent=1) + "\n", sync=False)
        except FileNotFoundError:
            self.require_exists()  # deleted at this very moment
            raise

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

    def best(self, metrics: Metrics | None = None) -> Export | None:
        """The export of the best evaluation by margin, the newer of equals; the newest where none is measured.

        metrics: those of the run where they are read already.
        """
        exports = {export.iteration: export for export in self.exports()}
        measured = (metrics or self.metrics()).evaluations(exports)
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
            file.write((b"\n" if torn else b"") + json.dumps(_json_ready(row)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self, tail: int | None = None) -> Metrics:
        """What metrics.jsonl holds now, or complete lines of its last `tail` bytes."""
        path = self.path / "metrics.jsonl"
        with contextlib.suppress(OSError):
            require_regular(path)
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0 if tail is None else max(0, size - tail))
                if file.tell():
                    file.readline()
                return Metrics(file.read())
        return Metrics(b"")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows in order."""
        return self.metrics().rows()

    def training(self) -> list[dict[str, Any]]:
        """The rows of training iterations."""
        return [row for row in self.read_metrics() if row.get("kind") == "train"]

    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of complete evaluations."""
        return self.metrics().evaluations()

    def last_evaluation(self) -> dict[str, Any] | None:
        """The last of `evaluations`, looked for at the end of the file first."""
        return self.metrics(TAIL).last_evaluation() or self.metrics().last_evaluation()

    def truncate_metrics(self, iteration: int) -> None:
        """Forget rows after `iteration`: a resumed run writes them again."""
        rows = [row for row in self.read_metrics() if row["iteration"] <= iteration]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # --- measurements and clips --------------------------------------------------------------------------------------

    def write_measurement(self, of: int | Literal["base"], values: dict[str, Any]) -> None:
        """Keep the scores per held-out item of an iteration, or of the base policy, in `evaluation/`."""
        write_atomic(self._measurement(of), json.dumps(_json_ready(values)) + "\n")

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
        """Animations `samples/<iteration>/<place>-<item id>.webp` of videos uint8 [n, F, H, W, 3].

        Small ones are lossless; of larger ones a run would write gigabytes, and wait for them.
        Raises UserError when the disk is full.
        """
        from ..pictures.clips import write_animation

        self.require_exists()
        folder = self.samples_folder / f"{iteration:06d}"
        with full_disk_explained(folder):
            return [
                write_animation(
                    video,
                    folder / f"{place:02d}-{_file_name(item.id)}.webp",
                    fps,
                    quality=None if video.shape[1] * video.shape[2] <= LOSSLESS_PIXELS else 90,
                )
                for place, (item, video) in enumerate(zip(items, videos, strict=True))
            ]

    def clip_files(self, iteration: int) -> dict[int, Path]:
        """The animations of an iteration by the number of their held-out item."""
        found = ((p, CLIP.fullmatch(p.name)) for p in (self.samples_folder / f"{iteration:06d}").glob("*.webp"))
        return {int(match[1]): path for path, match in found if match}

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
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        with contextlib.suppress(OSError):
            require_regular(self.log_file)
            with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)

    def rank_log(self, rank: int) -> Path:
        """What process `rank` of a run of several writes: log.txt of the main one, `logs/rank-1.txt` of the next."""
        return self.path / "logs" / f"rank-{rank}.txt" if rank else self.log_file

    def log_tail(self, lines: int = 20, rank: int = 0) -> str:
        """The last lines of log.txt, or of another process's log, empty when there is none; a log of any size is read
        in constant time."""
        log = self.rank_log(rank)
        if not log.is_file():
            return ""
        try:
            with open(log, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 400 * lines))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _json_ready(value: Any) -> Any:
    """JSON has no NaN or infinity: null. Nor has it lone surrogates, as in names of files that are not UTF-8."""
    if isinstance(value, dict):
        return {k: _json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(v) for v in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60] or "item"
