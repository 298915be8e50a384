"""`fetch`: which published files a task needs, and their download into ComfyUI's folders."""

from __future__ import annotations

import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..downloads.catalog import TASKS, Published, Repository
from ..downloads.fetch import fetch, is_there, place_of
from ..errors import UserError
from .comfyui import find_comfyui
from .tables import markdown_table

EVERY = 5.0  # seconds between two lines of progress


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("task", choices=list(TASKS), help="what the files are for")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="ComfyUI's folder of models (default: that of the ComfyUI that is found, else ./models)",
    )
    parser.add_argument(
        "--download", action="store_true", help="download what is missing; without it nothing is asked of any server"
    )


def main(options: Namespace) -> int:
    """Print what is there and what is missing, and download that if asked; 0 when nothing is missing, else 1."""
    models = _models(options.models)
    items = TASKS[options.task]
    print(markdown_table([_row(item, models) for item in items]))
    missing = [item for item in items if not is_there(item, models)]
    if not missing:
        print(f"nothing is missing in {models}")
        return 0
    if not options.download:
        print(f"{len(missing)} missing in {models}; --download downloads them, and continues an interrupted download")
        return 1
    for item in missing:
        print(f"{item.name}: {fetch(item, models, _Progress())}", flush=True)
    return 0


def _models(folder: Path | None) -> Path:
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--models {folder}: there is no such folder; give ComfyUI's folder of models")
        return folder.absolute()
    comfyui = find_comfyui()
    return comfyui / "models" if comfyui else Path(os.path.abspath("models"))


def _row(item: Published | Repository, models: Path) -> dict[str, str]:
    size = getattr(item, "size", None)
    place = place_of(item, models).relative_to(models)
    return {
        "file": str(place) + ("/" if isinstance(item, Repository) or item.archive else ""),
        "": "there" if is_there(item, models) else "missing",
        "size": f"{size / 1e9:.2f} GB" if size else "read from the server",
        "licence": item.licence,
        "from": item.page,
    }


class _Progress:
    """A line every few seconds."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if time.monotonic() - self.last > EVERY:
            self.last = time.monotonic()
            share = f" of {total / 1e9:.2f} GB ({done / total:.0%})" if total else " GB"
            print(f"{name}: {done / 1e9:.2f}{share}", file=sys.stderr, flush=True)
