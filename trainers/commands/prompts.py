"""`prompts make`: a prompt set of portraits and scenes, with people and scenes held out."""

from __future__ import annotations

import math
import random
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..pictures.reading import read_pixels
from ..prompts import PromptItem, save_prompt_set

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PLACE = "{people}"
SOMEONE = "a person"
ITEMS, HELD_OUT = 256, 32
ATTEMPTS = 1000


@dataclass(frozen=True)
class Person:
    """A person's portraits, and how a prompt describes the person."""

    name: str
    portraits: tuple[Path, ...]
    description: str


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="make", dest="action", help="what to do")
    make = commands.add_parser("make", help="portraits times scenes, as two CSV files: to train on, and held out")
    make.add_argument(
        "portraits",
        type=Path,
        help="folder with a picture or a folder of pictures for each person; NAME.txt beside a picture, or "
        f"description.txt in a folder, describes the person (`a woman with red hair`; default: {SOMEONE})",
    )
    make.add_argument("--scenes", type=Path, required=True, help=f"text file with a scene a line, with `{PLACE}` in it")
    make.add_argument("--out", type=Path, default=Path("people.csv"), help="default: people.csv")
    make.add_argument("--people", type=int, default=2, help="in each video (default: 2)")
    make.add_argument("--items", type=int, help=f"rows to train on (default: up to {ITEMS})")
    make.add_argument("--held-out", type=int, help=f"rows that are held out (default: up to {HELD_OUT})")
    make.add_argument("--seed", type=int, default=0, help="of the order and the pairs (default: 0)")


def main(options: Namespace) -> int:
    """Write the two prompt sets and print how often each person is in them."""
    people, scenes = read_people(options.portraits), read_scenes(options.scenes)
    each = options.people
    for name, value in (("--people", each), ("--items", options.items), ("--held-out", options.held_out)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value} is too few; give 1 or more")
    order = random.Random(options.seed)
    order.shuffle(people)
    order.shuffle(scenes)
    # A fifth of each, and at least one video's people.
    away, hidden = max(each, len(people) // 5), max(1, len(scenes) // 5)
    if len(people) < away + each or len(scenes) < hidden + 1:
        raise UserError(
            f"{len(people)} people and {len(scenes)} scenes are too few: {each} people and a scene are held out, and "
            "as many are needed to train on; give more"
        )
    most = math.comb(len(people) - away, each) * (len(scenes) - hidden), math.comb(away, each) * hidden
    counts = options.items or min(ITEMS, most[0]), options.held_out or min(HELD_OUT, most[1])
    train = make_items(people[away:], scenes[hidden:], each, counts[0], order, "train")
    held_out = make_items(people[:away], scenes[:hidden], each, counts[1], order, "held_out")
    beside = options.out.with_name(f"{options.out.stem}_held_out{options.out.suffix}")
    for path in (options.out, beside):
        if path.exists():
            raise UserError(f"there is a {path} already; move it away, or give another file with --out")
    for path, items, names in ((options.out, train, people[away:]), (beside, held_out, people[:away])):
        save_prompt_set(items, path)
        seen = Counter(reference for item in items for reference in item.references)
        times = [sum(seen[portrait] for portrait in person.portraits) for person in names]
        often = " to ".join(str(count) for count in dict.fromkeys((min(times), max(times))))
        print(f"{path}: {len(items)} rows of {each} people each; {len(names)} people, each in {often} of the rows")
    print(f"train with: --prompts {options.out} --set evaluation_prompts={beside}")
    return 0


def read_people(folder: Path) -> list[Person]:
    """The people in a folder, by name. Raises UserError when there are none, or a description is empty."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give one with a picture or a folder of pictures for each person")
    people = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            portraits = tuple(sorted(p for p in entry.iterdir() if p.suffix.lower() in PICTURES))
            about = entry / "description.txt"
        elif entry.suffix.lower() in PICTURES:
            portraits, about = (entry,), entry.with_suffix(".txt")
        else:
            continue
        for portrait in portraits:
            if ";" in portrait.name:
                raise UserError(f"the name of {portrait} has a `;`, which separates pictures in a CSV; rename it")
            read_pixels(portrait)  # raises for what is no picture
        if portraits:
            description = _text(about).strip() if about.is_file() else SOMEONE
            if not description:
                raise UserError(f"{about} is empty; describe the person, as `a woman with red hair`, or remove it")
            people.append(Person(entry.stem, portraits, " ".join(description.split())))
    if not people:
        raise UserError(f"{folder} has no pictures ({', '.join(PICTURES)}); put one for each person there")
    return people


def read_scenes(path: Path) -> list[str]:
    """The lines of a text file, without blank ones. Raises UserError for one without a place for the people."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a text file with a scene a line")
    scenes = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip() and PLACE not in line:
            raise UserError(f"{path}, line {number}: `{line.strip()[:60]}` has no {PLACE}; put it where they are named")
        if line.strip():
            scenes.append(line.strip())
    return list(dict.fromkeys(scenes))


def make_items(
    people: Sequence[Person], scenes: Sequence[str], each: int, count: int, order: random.Random, name: str
) -> list[PromptItem]:
    """`count` items of `each` people in a scene: every person and every scene as often as the others, up to one.

    No two items have the same people in the same scene; where nearly all of them are asked for, that goes first.
    Raises UserError when there are not so many.
    """
    if count > (most := math.comb(len(people), each) * len(scenes)):
        raise UserError(
            f"{len(people)} people, {each} at a time, in {len(scenes)} scenes make {most} different rows, not {count}; "
            "ask for fewer, or give more people or scenes"
        )
    times, shown, found = Counter(), Counter(), dict[tuple[frozenset[str], str], PromptItem]()
    for number in range(count):
        for _ in range(ATTEMPTS):
            chosen = sorted(people, key=lambda person: (times[person.name], order.random()))[:each]
            scene = min(scenes, key=lambda scene: (shown[scene], order.random()))
            if (key := (frozenset(p.name for p in chosen), scene)) not in found:
                break
        else:  # the balanced choices are used up: the next best
            rest = ((frozenset(p.name for p in c), s, c) for s in scenes for c in _groups(people, each, order))
            key, chosen = next(((names, s), list(c)) for names, s, c in rest if (names, s) not in found)
        order.shuffle(chosen)
        found[key] = _item(f"{name}-{number:04d}", chosen, key[1], times)
        times.update(person.name for person in chosen)
        shown[key[1]] += 1
    return list(found.values())


def _groups(people: Sequence[Person], each: int, order: random.Random):
    from itertools import combinations

    return combinations(order.sample(list(people), len(people)), each)


def _item(name: str, people: Sequence[Person], scene: str, times: Counter) -> PromptItem:
    """A person's portraits take turns."""
    references = tuple(person.portraits[times[person.name] % len(person.portraits)] for person in people)
    *first, last = (person.description for person in people)
    named = f"{', '.join(first)} and {last}" if first else last
    prompt = scene.replace(PLACE, named)
    return PromptItem(name, prompt[:1].upper() + prompt[1:], references)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); save it as UTF-8 text") from error
