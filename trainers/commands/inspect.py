"""`inspect`: what files of weights are."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", type=Path, help="a file of weights, one shard of several, or their folder")


def main(options: Namespace) -> int:
    """Print a line for every file; 1 when one cannot be read."""
    status = 0
    for path in options.file:
        try:
            print(f"{path}: {_inspect(path)}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


def _inspect(path: Path) -> str:
    if not path.exists():
        raise UserError(f"there is no {path}; give a file of weights or a folder with some")
    from ..modelfiles.inspection import inspect_file

    return inspect_file(path)
