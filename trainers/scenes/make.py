"""A prompt set of people and scenes: every person and every scene as often as the others, some held out."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..prompts import PromptItem
from .portraits import Person
from .texts import read_text

PLACE = "{people}"
ITEMS, HELD_OUT = 256, 32
ATTEMPTS = 1000
OWN_SCENES = {2: Path(__file__).parent / "2_people.txt", 3: Path(__file__).parent / "3_people.txt"}
"""The scenes that come with the code, by the number of people."""


def scenes_for(each: int, path: Path | None = None) -> list[str]:
    """The scenes of a text file, or without one those that come with the code for `each` people.

    Raises UserError for another number of people, and as `read_scenes`.
    """
    if path is None and each not in OWN_SCENES:
        raise UserError(
            f"the scenes that come with the code are for {' or '.join(map(str, OWN_SCENES))} people, not {each}; "
            "give a text file of scenes"
        )
    return read_scenes(path or OWN_SCENES[each])


def read_scenes(path: Path) -> list[str]:
    """The lines of a text file, without blank ones. Raises UserError for one without a place for the people."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a text file with a scene a line")
    scenes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and PLACE not in line:
            raise UserError(f"{path}, line {number}: `{line.strip()[:60]}` has no {PLACE}; put it where they are named")
        if line.strip():
            scenes.append(line.strip())
    return list(dict.fromkeys(scenes))


def make_sets(
    people: Sequence[Person],
    scenes: Sequence[str],
    each: int,
    items: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
) -> tuple[list[PromptItem], list[PromptItem]]:
    """Items to train on, and held-out ones of other people in other scenes; `each` people in every video.

    A fifth of the people and scenes is held out. items, held_out: how many; None: as many as there are, up to 256 and
    32. Raises UserError when there are too few people or scenes.
    """
    for name, value in (("people in each video", each), ("rows", items), ("held-out rows", held_out)):
        if value is not None and value < 1:
            raise UserError(f"{value} {name} are too few; give 1 or more")
    order = random.Random(seed)
    people, scenes = list(people), list(scenes)
    order.shuffle(people)
    order.shuffle(scenes)
    away, hidden = _held_out(len(people), len(scenes), each)
    most = most_items(len(people), len(scenes), each)
    counts = items or min(ITEMS, most[0]), held_out or min(HELD_OUT, most[1])
    return (
        make_items(people[away:], scenes[hidden:], each, counts[0], order, "train"),
        make_items(people[:away], scenes[:hidden], each, counts[1], order, "held_out"),
    )


def most_items(people: int, scenes: int, each: int) -> tuple[int, int]:
    """How many different items to train on, and held out, so many people and scenes make. Raises UserError for none."""
    away, hidden = _held_out(people, scenes, each)
    return math.comb(people - away, each) * (scenes - hidden), math.comb(away, each) * hidden


def _held_out(people: int, scenes: int, each: int) -> tuple[int, int]:
    """How many people and scenes are held out: a fifth, and at least those of one video."""
    away, hidden = max(each, people // 5), max(1, scenes // 5)
    if people < away + each or scenes < hidden + 1:
        raise UserError(
            f"{people} people and {scenes} scenes are too few: {each} people and a scene are held out, and "
            "as many are needed to train on; give more"
        )
    return away, hidden


def describe_balance(items: Sequence[PromptItem]) -> str:
    """How many rows and people there are, and how often each picture is in the rows."""
    seen = Counter(str(reference) for item in items for reference in item.references)
    often = " to ".join(str(count) for count in dict.fromkeys((min(seen.values()), max(seen.values()))))
    each = len(items[0].references)
    return f"{len(items)} rows of {each} people each; {len(seen)} pictures, each in {often} of the rows"


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
