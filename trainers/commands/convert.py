"""`convert`: pickled weights as .safetensors."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..modelfiles.conversion import convert_pickled, pickled_files


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("place", nargs="+", type=Path, help="a .pth file, or a folder with some, as a reward's")


def main(options: Namespace) -> int:
    """Write a .safetensors file beside every pickled one; files that have one are left alone."""
    for place in options.place:
        for path in pickled_files(place):
            written = convert_pickled(path)
            beside = path.with_suffix(".safetensors").name
            print(f"{path}: " + (f"written as {written.name}" if written else f"left alone, {beside} is there already"))
    return 0
