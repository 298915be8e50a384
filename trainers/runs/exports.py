"""The LoRA files that a run writes, publishes and keeps."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import place_atomic, read_regular, sweep, write_atomic
from ..lora.formats import LoRA, write_native
from .folder import Export, RunFolder


class Exports:
    """Writes a run's exports, keeps a copy of each in the `publish` folder, and removes old ones.

    Kept are the `keep` newest, the best evaluated, and those that the user asked to save, in the run and where they are
    published. `warning`: what went wrong with publishing last, else empty.
    """

    def __init__(self, run: RunFolder, publish: str | None, keep: int) -> None:
        self.run, self.keep, self.warning = run, keep, ""
        self.published = Path(publish) / run.id if publish else None

    def write(self, lora: LoRA, iteration: int, policy: str, asked: bool = False) -> Path:
        """Write the LoRA of an iteration; `asked`: the user asked for it, so it is kept for good."""
        path = self.run.export_path(iteration)
        write_native(lora, path, {"run": self.run.id, "iteration": str(iteration), "policy": policy})
        if asked:
            write_atomic(self._list, json.dumps(sorted({*self.asked(), iteration})) + "\n")
        self.prune()
        self.publish()
        return path

    def asked(self) -> set[int]:
        """Iterations whose export the user asked for."""
        try:
            kept = json.loads(read_regular(self._list))
            return {iteration for iteration in kept if isinstance(iteration, int)}
        except (OSError, ValueError, TypeError, RecursionError):
            return set()

    def prune(self) -> None:
        """Remove exports that are neither new, best nor asked for, also where they are published."""
        exports, best = self.run.exports(), self.run.best()
        kept = (
            {export.iteration for export in exports[-self.keep :]}
            | self.asked()
            | ({best.iteration} if best else set())
        )
        for export in exports:
            if export.iteration not in kept:
                export.path.unlink(missing_ok=True)
                if self.published:
                    (self.published / export.path.name).unlink(missing_ok=True)

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
                place_atomic(export.path, self.published / export.path.name)
            except OSError as error:
                self.warning = (
                    f"{export.path.name} could not be published to {self.published} ({error}); "
                    f"it is in {export.path.parent}"
                )

    def _is_published(self, export: Export) -> bool:
        copy = self.published / export.path.name
        return copy.is_file() and copy.stat().st_size == export.path.stat().st_size

    @property
    def _list(self) -> Path:
        return self.run.exports_folder / "kept.json"
