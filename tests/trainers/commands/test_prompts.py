"""Prompt sets made of portraits and scenes."""

from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from trainers.cli import main
from trainers.errors import UserError
from trainers.prompts import load_prompt_set

SCENES = [f"{{people}} walk by the sea, take {n}" for n in range(10)]


@pytest.fixture
def portraits(tmp_path):
    """Twelve people: ten of one picture, one of them described, and two of two pictures."""
    folder = tmp_path / "portraits"
    (folder / "kim").mkdir(parents=True)
    (folder / "lee").mkdir()
    names = [f"p{n}.png" for n in range(10)] + [f"{who}/{n}.jpg" for who in ("kim", "lee") for n in range(2)]
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(folder / name)
    (folder / "p0.txt").write_text("a woman\nwith red hair", encoding="utf-8")
    (folder / "kim" / "description.txt").write_text("a man with a beard", encoding="utf-8")
    (tmp_path / "scenes.txt").write_text("\n".join(["", *SCENES, SCENES[0]]), encoding="utf-8")
    return folder


def make(portraits, *options):
    out = portraits.parent / f"sets{len(list(portraits.parent.glob('sets*')))}" / "people.csv"
    scenes = portraits.parent / "scenes.txt"
    given = ["--scenes", str(scenes), "--out", str(out), "--unchecked", *options]
    assert main(["prompts", "make", str(portraits), *given]) == 0
    return load_prompt_set(out), load_prompt_set(out.with_name("people_held_out.csv"))


def person(path):
    return path.parent.name if path.parent.name in ("kim", "lee") else path.stem


def test_every_person_and_every_scene_is_as_frequent_as_the_others(portraits):
    train, held_out = make(portraits, "--items", "75", "--held-out", "2")
    assert (len(train), len(held_out)) == (75, 2)
    for values in (
        Counter(person(reference) for item in train for reference in item.references),
        Counter(item.prompt.partition("take ")[2] for item in train),
    ):
        assert max(values.values()) - min(values.values()) <= 1
    assert len({(frozenset(map(person, i.references)), i.prompt.partition("take ")[2]) for i in train}) == 75
    assert all(len({person(r) for r in item.references}) == 2 for item in train)


def test_held_out_people_and_scenes_are_not_trained_on(portraits):
    train, held_out = make(portraits, "--items", "40", "--held-out", "2")
    for of in (lambda i: set(map(person, i.references)), lambda i: {i.prompt.partition("take ")[2]}):
        sets = [set().union(*map(of, items)) for items in (train, held_out)]
        assert sets[0].isdisjoint(sets[1])


def test_descriptions_are_in_the_prompt_and_portraits_take_turns(portraits):
    train, held_out = make(portraits, "--items", "60", "--held-out", "2", "--people", "3")
    found = {}
    for item in (*train, *held_out):
        assert item.prompt.count(", ") >= 1 and " and " in item.prompt and item.prompt[0].isupper()
        for reference in item.references:
            found.setdefault(person(reference), []).append((reference.name, item.prompt))
    assert all("a woman with red hair" in prompt.lower() for _, prompt in found["p0"])
    assert {name for name, _ in found["lee"]} == {"0.jpg", "1.jpg"}


def test_the_same_seed_gives_the_same_set(portraits):
    first, second = (
        make(portraits, "--items", "20", "--held-out", "2"),
        make(portraits, "--items", "20", "--held-out", "2"),
    )
    other = make(portraits, "--items", "20", "--held-out", "2", "--seed", "1")
    assert [s.digest for s in first] == [s.digest for s in second] != [s.digest for s in other]


def test_without_numbers_as_many_as_there_are_are_made(portraits):
    train, held_out = make(portraits)
    assert (len(train), len(held_out)) == (256, 2)


def test_all_different_rows_can_be_asked_for(portraits):
    train, _ = make(portraits, "--items", "360", "--held-out", "2")
    assert len(train) == 360 == 45 * 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--items", "361"], "10 people, 2 at a time, in 8 scenes make 360 different rows, not 361"),
        (["--held-out", "3"], "2 people, 2 at a time, in 2 scenes make 2 different rows, not 3"),
        (["--people", "7"], "12 people and 10 scenes are too few"),
        (["--people", "0"], "0 people in each video are too few"),
    ],
)
def test_what_cannot_be_made_is_refused(portraits, capsys, options, said):
    with pytest.raises(AssertionError):
        make(portraits, *options)
    assert said in capsys.readouterr().err
    assert not (portraits.parent / "sets").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("scenes.txt", "a walk by the sea", "line 1: `a walk by the sea` has no {people}"),
        ("portraits/p0.txt", " ", "p0.txt is empty; describe the person"),
        ("scenes.txt", "\ud800", "save it as UTF-8"),
    ],
)
def test_a_wrong_text_is_named(portraits, capsys, name, content, said):
    (portraits.parent / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(AssertionError):
        make(portraits)
    assert said in capsys.readouterr().err


def test_a_folder_without_pictures_is_named(tmp_path):
    from trainers.scenes.portraits import read_people

    with pytest.raises(UserError, match="has no pictures"):
        read_people(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        read_people(tmp_path / "nothing")


def test_a_prompt_set_that_is_there_is_not_overwritten(portraits, capsys):
    make(portraits)
    out = portraits.parent / "sets0" / "people.csv"
    scenes = portraits.parent / "scenes.txt"
    before = out.read_bytes()
    assert main(["prompts", "make", str(portraits), "--scenes", str(scenes), "--out", str(out)]) == 2
    assert "already" in capsys.readouterr().err and out.read_bytes() == before


def test_what_is_no_picture_is_named_before_anything_is_written(portraits, capsys):
    (portraits / "zed.png").write_bytes(b"junk")
    out = portraits.parent / "new.csv"
    assert (
        main(["prompts", "make", str(portraits), "--scenes", str(portraits.parent / "scenes.txt"), "--out", str(out)])
        == 2
    )
    assert "zed.png" in capsys.readouterr().err and not out.exists()
