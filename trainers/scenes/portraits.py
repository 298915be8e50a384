"""The people of a prompt set: their portraits, and whether a portrait can be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..pictures.reading import read_pixels
from .texts import read_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SOMEONE = "a person"
BESIDE = 0.5
"""A second face counts from this share of the largest one's size: passers-by in the background are no second person."""
SHOWN = 10


@dataclass(frozen=True)
class Person:
    """A person's portraits, and how a prompt describes the person."""

    name: str
    portraits: tuple[Path, ...]
    description: str


def holds_portraits(folder: Path) -> bool:
    """Whether `read_people` would find a picture in a folder; none is opened."""
    files = (file for depth in ("*", "*/*") for file in folder.glob(depth))
    return any(file.suffix.lower() in PICTURES for file in files)


def read_people(folder: Path, refusal: Callable[[Path], str | None] = lambda _: None) -> list[Person]:
    """The people in a folder, by name. Raises UserError when there are none, or a description is empty.

    `refusal` gives the reason why a picture may not be used, if there is one; such a file is not accessed at all.
    """
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
            if problem := refusal(portrait):
                raise UserError(problem)
            read_pixels(portrait)  # raises for what is no picture
        if portraits:
            description = read_text(about).strip() if about.is_file() else SOMEONE
            if not description:
                raise UserError(f"{about} is empty; describe the person, as `a woman with red hair`, or remove it")
            people.append(Person(entry.stem, portraits, " ".join(description.split())))
    if not people:
        raise UserError(f"{folder} has no pictures ({', '.join(PICTURES)}); put one for each person there")
    return people


def check_portraits(people: Sequence[Person], progress: Callable[[], None] = lambda: None) -> None:
    """Raises UserError that lists portraits which do not show one face, large and sharp enough to be recognised.

    `progress` is called before every picture and may raise to stop.
    """
    from ..faces.weights import release_networks

    problems = []
    try:
        for portrait in (portrait for person in people for portrait in person.portraits):
            progress()
            if problem := _problem(portrait):
                problems.append(f"{portrait} {problem}")
    finally:
        release_networks()
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{len(problems)} portraits cannot be used:\n  "
            + "\n  ".join(problems[:SHOWN])
            + more
            + "\nreplace or remove them; for illustrated people, whose faces nothing recognises, turn the check off"
        )


def _problem(portrait: Path) -> str:
    import torch

    from ..faces.calibration import JUDGEABLE
    from ..faces.detect import detect
    from ..faces.embed import can_judge

    faces = detect(torch.from_numpy(read_pixels(portrait).copy())[None])
    if not len(faces):
        return "shows no face"
    largest = int(faces.size.argmax())
    if (count := int((faces.size >= BESIDE * faces.size[largest]).sum())) > 1:
        return f"shows {count} faces; crop it to one"
    if faces.size[largest] < JUDGEABLE:
        return f"has a face of {faces.size[largest]:.0f} pixels; at least {JUDGEABLE} are needed"
    return "" if can_judge(faces)[largest] else "has a blurred face"
