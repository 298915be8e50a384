"""The LoRA files that a run writes, publishes and keeps."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from filelock import FileLock

from ..config import PolicyKind, TrainConfig
from ..errors import UserError
from ..files import atomic_file, place_atomic, read_regular, sweep, write_atomic
from ..lora.formats import LoRA, write_native
from ..pictures.preview import cover, preview
from .export_metadata import export_metadata, run_metadata
from .folder import Export, RunFolder

LOCK_SECONDS = 10.0
PREVIEW = ".webp"
"""Ending of the picture beside a LoRA of the same name: ComfyUI and Lora-Manager show it."""


class Exports:
    """Writes a run's exports, keeps a copy of each in the `publish` folder, and removes old ones.

    Kept are the `keep` newest, the best evaluated, and those that the user asked to save, in the run and where they are
    published. `warning`: what went wrong with publishing last, else empty. Raises UserError for a frozen LoRA of the
    config that cannot be read.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run, self.config, self.keep, self.warning = run, config, config.checkpoint.keep, ""
        self.published = Path(config.publish) / run.id if config.publish else None
        self._shared = run_metadata(config)
        self._pictures: tuple[Path, bytes, str] | None = None

    def write(self, lora: LoRA, iteration: int, policy: PolicyKind, asked: bool = False) -> Path:
        """Write the LoRA of an iteration, and a preview beside it; `asked`: the user asked for it, so it is kept for
        good.
        """
        path = self.run.export_path(iteration)
        width = max(len(up) for _, up in lora.modules.values())
        entries = export_metadata(self._shared, self.config, self.run.id, policy, iteration, width)
        if pictures := self._newest_pictures():
            moving, still = pictures
            entries["ssmd_cover_images"] = json.dumps([still])
            with atomic_file(path.with_suffix(PREVIEW), sync=False) as aside:
                aside.write_bytes(moving)
        write_native(lora, path, entries)
        if asked:
            keep(self.run, iteration)
        self.prune()
        self.publish()
        return path

    def prune(self) -> None:
        """Remove exports that are neither new, best nor asked for, also where they are published."""
        exports, best = self.run.exports(), self.run.best()
        kept = (
            {export.iteration for export in exports[-self.keep :]}
            | asked_iterations(self.run)
            | ({best.iteration} if best else set())
        )
        for export in exports:
            if export.iteration not in kept:
                for path in (export.path, export.path.with_suffix(PREVIEW)):
                    path.unlink(missing_ok=True)
                    if self.published:
                        (self.published / path.name).unlink(missing_ok=True)

    def publish(self) -> None:
        """Put every export that is missing in the published folder there.

        A failure does not end the run: it becomes `warning`.
        """
        self.warning = ""
        if self.published and self.published.is_dir():
            sweep(self.published)
        for export in self.run.exports() if self.published else ():
            try:
                if self._is_published(export):
                    continue
                if (picture := export.path.with_suffix(PREVIEW)).is_file():
                    place_atomic(picture, self.published / picture.name)
                place_atomic(export.path, self.published / export.path.name)
            except OSError as error:
                self.warning = (
                    f"{export.path.name} could not be published to {self.published} ({error}); "
                    f"it is in {export.path.parent}"
                )

    def _newest_pictures(self) -> tuple[bytes, str] | None:
        """The preview of the run's newest clip, and a still of it in base64; None while there is no clip to read."""
        clips = self.run.clips()
        if not clips:
            return None
        if self._pictures is None or self._pictures[0] != clips[0][0]:
            try:
                self._pictures = clips[0][0], preview(clips[0][0]), base64.b64encode(cover(clips[0][0])).decode()
            except (UserError, OSError):  # a clip is no reason to lose a LoRA
                return None
        return self._pictures[1:]

    def _is_published(self, export: Export) -> bool:
        copy = self.published / export.path.name
        return copy.is_file() and copy.stat().st_size == export.path.stat().st_size


def asked_iterations(run: RunFolder) -> set[int]:
    """Iterations whose export the user asked for."""
    try:
        kept = json.loads(read_regular(_list(run)))
        return {iteration for iteration in kept if isinstance(iteration, int)}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()


def keep(run: RunFolder, iteration: int, kept: bool = True) -> None:
    """Keep the export of an iteration for good, or no longer: then it goes when newer ones have come.

    Raises UserError when the run has no export of it.
    """
    exports = [export.iteration for export in run.exports()]
    if iteration not in exports:
        there = f"it has those of {', '.join(map(str, exports))}" if exports else "it has none yet"
        raise UserError(f"run {run.id} has no LoRA of iteration {iteration}; {there}")
    # The run's process may add to the list at the same time.
    with FileLock(_list(run).with_suffix(".lock"), timeout=LOCK_SECONDS):
        asked = asked_iterations(run)
        asked = asked | {iteration} if kept else asked - {iteration}
        write_atomic(_list(run), json.dumps(sorted(asked)) + "\n")


def _list(run: RunFolder) -> Path:
    return run.exports_folder / "kept.json"
