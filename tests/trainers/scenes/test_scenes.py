"""The scenes that come with the code, and which portraits are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainers.errors import UserError
from trainers.scenes.make import make_sets, scenes_for
from trainers.scenes.portraits import Person, check_portraits, read_people

FACES = sorted((Path(__file__).parents[1] / "faces" / "pictures").glob("*.jpg"))


def test_two_hundred_scenes_come_with_the_code():
    two, three = scenes_for(2), scenes_for(3)
    assert len({*two, *three}) == len(two) + len(three) == 200
    for scene in (*two, *three):
        assert scene.count("{people}") == 1 and scene.endswith(".") and 7 <= len(scene.split()) <= 30


def test_clothing_is_left_to_the_reference_images():
    words = {word.strip(".,;").lower() for scene in (*scenes_for(2), *scenes_for(3)) for word in scene.split()}
    assert words.isdisjoint({"dress", "suit", "shirt", "jacket", "hat", "uniform", "wearing", "dressed", "coat"})


def test_another_number_of_people_needs_scenes_of_its_own(tmp_path):
    with pytest.raises(UserError, match="are for 2 or 3 people, not 4; give a text file"):
        scenes_for(4)
    (tmp_path / "four.txt").write_text("{people} wave.")
    assert scenes_for(4, tmp_path / "four.txt") == ["{people} wave."]


def test_a_set_of_three_people_is_made_of_the_scenes_of_three():
    people = [Person(f"p{n}", (Path(f"p{n}.png"),), "a person") for n in range(12)]
    train, held_out = make_sets(people, scenes_for(3), 3, 50, 10)
    assert (len(train), len(held_out)) == (50, 10)
    assert all(len(item.references) == 3 and "a person, a person and a person" in item.prompt.lower() for item in train)


def person(path: Path) -> Person:
    return Person(path.stem, (path,), "a person")


def test_portraits_of_one_clear_face_are_taken():
    check_portraits([person(path) for path in FACES])


def test_portraits_that_cannot_be_recognised_are_listed_with_the_reason(tmp_path):
    face = Image.open(FACES[0]).convert("RGB")
    two = Image.new("RGB", (2 * face.width, face.height))
    two.paste(face, (0, 0))
    two.paste(Image.open(FACES[1]).convert("RGB").resize(face.size), (face.width, 0))
    pictures = {
        "none": (Image.new("RGB", (64, 64), "green"), "shows no face"),
        "two": (two, "shows 2 faces; crop it to one"),
    }
    for name, (picture, _) in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    with pytest.raises(UserError) as error:
        check_portraits(read_people(tmp_path))
    assert "2 portraits cannot be used" in str(error.value) and "turn the check off" in str(error.value)
    for name, (_, reason) in pictures.items():
        assert f"{name}.png {reason}" in str(error.value)


def test_a_picture_that_is_refused_is_not_read(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match="not here"):
        read_people(tmp_path, lambda path: "not here")
