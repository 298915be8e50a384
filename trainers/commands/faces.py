"""`faces`: whether the people of clips are those of the reference images."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import UserError
from ..files import write_atomic
from ..pictures.clips import read_clip
from ..pictures.reading import read_pixels
from .numbers import number_between
from .tables import markdown_table

FPS = 10.0  # of a folder of frames


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("clip", nargs="*", type=Path, help="animation (GIF, WebP), folder of frames, or video file")
    parser.add_argument(
        "--references",
        nargs="+",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="one picture per person; after the clips",
    )
    parser.add_argument(
        "--fps", type=number_between(0.1, 240, float), help="frames per second (default: the file's, 10 for a folder)"
    )
    parser.add_argument("--detector", type=Path, metavar="ONNX", help="your own face detector, as InsightFace's SCRFD")
    parser.add_argument(
        "--embedder", type=Path, metavar="ONNX", help="your own face embedder, as InsightFace's ArcFace"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write who is who in which frame, of one clip")
    parser.add_argument("--save", type=Path, metavar="JSON", help="write the numbers; otherwise nothing is kept")


def main(options: Namespace) -> int:
    """Print the report of every clip."""
    if not options.clip:
        raise UserError("no clip is given: name the clips before --references, which takes all files that follow it")
    if options.picture and len(options.clip) > 1:
        raise UserError(f"--picture shows one clip, and {len(options.clip)} are given; give one")
    pictures = [read_pixels(path) for path in options.references]
    for path in options.clip:
        if not path.exists():
            read_clip(path)  # refuses it, before what takes seconds to import

    import torch

    from ..faces.board import face_board
    from ..faces.report import find_people, report
    from ..faces.text import headline_text, notes, rows
    from ..faces.users import load_recogniser
    from ..pictures.layout import save_png

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recogniser = load_recogniser(options.detector, options.embedder)
    if recogniser.licence_note:
        print(recogniser.licence_note + "\n")
    people = find_people(pictures, device, [str(path) for path in options.references], recogniser)
    saved = []
    for path in options.clip:
        frames, rate = read_clip(path)
        found = report(torch.from_numpy(frames), people, options.fps or rate or FPS, device)
        saved.append({"clip": str(path)} | found.numbers())
        print(f"{path}: {headline_text(found)}\n{markdown_table(rows(found))}")
        for note in notes(found):
            print(f"- {note}")
        print()
        if options.picture:
            from PIL import Image

            print(f"picture: {save_png(Image.fromarray(face_board(frames, found)), options.picture)}")
    if options.save:
        write_atomic(options.save, json.dumps(saved, indent=1))
        print(f"numbers: {options.save}")
    return 0
