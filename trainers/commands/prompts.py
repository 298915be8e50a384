"""`prompts make`: a prompt set of portraits and scenes, with people and scenes held out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import UserError
from ..prompts import save_prompt_set
from ..scenes.make import HELD_OUT, ITEMS, PLACE, describe_balance, make_sets, scenes_for
from ..scenes.portraits import SOMEONE, check_portraits, read_people


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="make", dest="action", help="what to do")
    make = commands.add_parser("make", help="portraits times scenes, as two CSV files: to train on, and held out")
    make.add_argument(
        "portraits",
        type=Path,
        help="folder with a picture or a folder of pictures for each person; NAME.txt beside a picture, or "
        f"description.txt in a folder, describes the person (`a woman with red hair`; default: {SOMEONE})",
    )
    make.add_argument(
        "--scenes",
        type=Path,
        help=f"text file with a scene a line, with `{PLACE}` in it (default: 130 scenes of two people, or 70 of three, "
        "that come with the code)",
    )
    make.add_argument("--out", type=Path, default=Path("people.csv"), help="default: people.csv")
    make.add_argument("--people", type=int, default=2, help="in each video (default: 2)")
    make.add_argument("--items", type=int, help=f"rows to train on (default: up to {ITEMS})")
    make.add_argument("--held-out", type=int, help=f"rows that are held out (default: up to {HELD_OUT})")
    make.add_argument("--seed", type=int, default=0, help="of the order and the pairs (default: 0)")
    make.add_argument(
        "--unchecked",
        action="store_true",
        help="take portraits whose faces cannot be recognised, such as those of illustrated people; without it each "
        "has to show one face, large and sharp",
    )


def main(options: Namespace) -> int:
    """Write the two prompt sets and print how often each person is in them."""
    beside = options.out.with_name(f"{options.out.stem}_held_out{options.out.suffix}")
    for path in (options.out, beside):
        if path.exists():
            raise UserError(f"there is a {path} already; move it away, or give another file with --out")
    people = read_people(options.portraits)
    scenes = scenes_for(options.people, options.scenes)
    sets = make_sets(people, scenes, options.people, options.items, options.held_out, options.seed)
    if not options.unchecked:
        try:
            check_portraits(people)
        except UserError as error:
            raise UserError(f"{error} (--unchecked)") from error
    for path, items in zip((options.out, beside), sets, strict=True):
        save_prompt_set(items, path)
        print(f"{path}: {describe_balance(items)}")
    print(f"train with: --prompts {options.out} --set evaluation_prompts={beside}")
    return 0
