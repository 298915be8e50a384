"""`reward distort`: pairs of the user's own clips, labelled by construction."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, shown
from .numbers import number_between

KINDS = ("swap", "drop", "blend", "drift")


@dataclass(frozen=True)
class Clip:
    """A clip to distort, and the reference images of its people."""

    path: Path
    references: list[Path]
    prompt: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of pairs that they are added to")
    parser.add_argument("--clips", type=Path, nargs="+", default=[], help="clips of the same people")
    parser.add_argument(
        "--reference", type=Path, nargs="+", default=[], metavar="IMAGE", help="of --clips, one per person"
    )
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="columns `path`, `ref_paths` (`;` between) and `prompt`"
    )
    parser.add_argument("--each", type=number_between(1, 1000), default=8, help="pairs of each clip (default: 8)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all, in turn")
    parser.add_argument("--seed", type=number_between(0, 2**31), default=0, help="default: 0")


def main(options: Namespace) -> int:
    """Distort every clip, add the pairs, and print how many of each kind; clips without faces are named."""
    clips = [Clip(path, options.reference) for path in options.clips] + (
        read_table(options.table) if options.table else []
    )
    if not clips:
        raise UserError("no clip is given; give --clips with --reference, or a --table")
    if options.clips and not options.reference:
        raise UserError("--clips needs --reference: a picture of every person")

    import numpy as np
    import torch

    from ..pictures.clips import read_clip
    from ..pictures.reading import read_pixels
    from ..preference.distort import distorted_pair, find_heads
    from ..preference.folder import PairFolder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, made, rng = PairFolder(options.folder), Counter(), np.random.default_rng(options.seed)
    for clip in clips:
        frames, rate = read_clip(clip.path)
        strangers = [
            read_pixels(other.references[0]) for other in clips if not set(other.references) & set(clip.references)
        ]
        try:
            tracks = find_heads(frames, clip.references, device, [str(path) for path in clip.references])
            for number in range(options.each):
                pair = distorted_pair(frames, tracks, rng, options.kinds[number % len(options.kinds)], strangers)
                folder.add(
                    (pair.video_a, pair.video_b),
                    clip.references,
                    clip.prompt,
                    pair.kind,
                    rate or 10.0,
                    {1: "A", -1: "B", 0: "tie"}[pair.label],
                    "distortion",
                    automatic=True,
                )
                made[pair.kind] += 1
        except UserError as error:
            print(f"{clip.path}: left out, {error}", flush=True)
    if not made:
        raise UserError("no clip could be distorted; see above")
    print(", ".join(f"{count} {kind}" for kind, count in sorted(made.items())))
    print(f"{made.total()} pairs in {folder.path}")
    return 0


def read_table(path: Path) -> list[Clip]:
    """The clips of a CSV. Raises UserError that names the row that cannot be used."""
    from ..preference.importing import read_cells

    header, rows = read_cells(path)
    if not {"path", "ref_paths"} <= set(header):
        raise UserError(f"{path} lacks the columns path and ref_paths; it has {', '.join(header) or 'none'}")
    clips = []
    for number, row in enumerate(rows, 2):
        references = [path.parent / name.strip() for name in row["ref_paths"].split(";") if name.strip()]
        for file in (path.parent / row["path"], *references):
            if not row["path"] or not file.exists():
                raise UserError(f"{path}, row {number}: there is no file `{shown(file)}`")
        if not references:
            raise UserError(f"{path}, row {number}: `ref_paths` is empty; name a picture of every person")
        clips.append(Clip(path.parent / row["path"], references, row.get("prompt", "")))
    return clips
