"""Prompt sets: what is read, and what is said about what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.config import make_config
from trainers.errors import UserError
from trainers.prompts import PromptItem, PromptSet, load_prompt_set, save_prompt_set
from trainers.runs.inputs import resolve_prompts


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (value, 2 * value % 256, 7)).save(path)
    return path


def write(tmp_path: Path, *rows: str, name: str = "set.csv") -> Path:
    for index, letter in enumerate("abc"):
        picture(tmp_path / f"{letter}.png", index + 1)
    path = tmp_path / name
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def problems(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_prompt_set(path)
    return str(caught.value)


def test_rows_are_items_with_their_references_in_order(tmp_path):
    path = write(tmp_path, "ref_paths,prompt,id,negative", 'b.png;a.png,"two, waving",one,blurry', "c.png,alone,two,")
    first, second = load_prompt_set(path)
    assert (first.id, first.prompt, first.negative) == ("one", "two, waving", "blurry")
    assert [r.name for r in first.references] == ["b.png", "a.png"]
    assert (second.id, second.negative) == ("two", "")


def test_references_lie_beside_the_csv_wherever_we_stand(tmp_path, monkeypatch):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x")
    monkeypatch.chdir(Path(__file__).parent)
    assert load_prompt_set(path)[0].references[0].is_file()


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert [item.prompt for item in load_prompt_set(path)] == ["x"]


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (["prompt", "x"], "row 1: column `ref_paths` is missing"),
        (["refs,text", "x,y"], "column `ref_paths` and `prompt` is missing"),
        (["ref_paths,prompt"], "no rows"),
        ([""], "is empty"),
        (["ref_paths,prompt", "a.png,", "b.png,x"], "row 2: the prompt is empty"),
        (["ref_paths,prompt", "a.png,x", ",x"], "row 3: ref_paths is empty"),
        (["ref_paths,prompt", "a.png,x", "", "b.png,x"], "row 3: is empty"),
        (["ref_paths,prompt", "a.png,x", "b.png,one, two"], "row 3: has 3 fields where the header has 2; put quotes"),
        (["ref_paths,prompt", "a.png;none.png,x"], "row 2: reference image .*none.png is missing"),
        (["ref_paths,prompt,id", "a.png,x,one", "b.png,y,one"], "row 3: id `one` is already that of row 2"),
        (["ref_paths,prompt", 'a.png,"x'], "row 2: .*check the quotes"),
    ],
)
def test_a_fault_names_its_row(tmp_path, rows, sentence):
    path = write(tmp_path, *rows)
    with pytest.raises(UserError, match=sentence):
        load_prompt_set(path)


def test_a_picture_that_is_none_is_found_before_training(tmp_path):
    path = write(tmp_path, "ref_paths,prompt", "bad.png,x")
    (tmp_path / "bad.png").write_text("not a picture")
    assert "row 2: reference image" in problems(path) and "cannot be read" in problems(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_picture_is_found(tmp_path, suffix):
    path = write(tmp_path, "ref_paths,prompt", f"half{suffix},x")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"half{suffix}")
    whole = (tmp_path / f"half{suffix}").read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(whole[: len(whole) // 2])
    assert f"half{suffix} cannot be read" in problems(path)


def test_all_faults_are_listed_up_to_ten(tmp_path):
    path = write(tmp_path, "ref_paths,prompt", *["none.png,x"] * 13)
    told = problems(path)
    assert told.count("none.png is missing") == 10 and "row 11" in told and "and 3 more" in told


def test_a_set_that_is_not_utf8_says_what_to_do(tmp_path):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x")
    path.write_bytes(path.read_bytes() + "ü".encode("latin-1"))
    assert "save it as `CSV UTF-8`" in problems(path)


def test_a_missing_set_is_a_user_error(tmp_path):
    assert "cannot be read" in problems(tmp_path / "none.csv")


def test_equal_texts_with_other_people_stay_two_items(tmp_path):
    """Defect 8: groups keyed by their prompt text merge different people."""
    found = load_prompt_set(write(tmp_path, "ref_paths,prompt", "a.png;b.png,wave", "b.png;c.png,wave"))
    assert len({item.id for item in found}) == 2
    assert len({item.content() for item in found}) == 2


def test_the_digest_follows_contents_not_names(tmp_path):
    first = load_prompt_set(write(tmp_path / "one", "ref_paths,prompt", "a.png,x"))
    moved = write(tmp_path / "two", "ref_paths,prompt", "z.png,x")
    (tmp_path / "two" / "z.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    assert load_prompt_set(moved).digest == first.digest
    picture(tmp_path / "two" / "z.png", 99)
    assert load_prompt_set(moved).digest != first.digest


def test_the_digest_sees_text_reference_and_order():
    pixels = np.zeros((4, 4, 3), np.uint8)

    def digest(*items):
        return PromptSet(tuple(items), "").digest

    one, two = PromptItem("1", "x", (pixels,)), PromptItem("2", "y", (pixels + 1,))
    variants = [
        (one, two),
        (two, one),
        (one,),
        (PromptItem("1", "z", (pixels,)), two),
        (PromptItem("1", "x", (pixels + 1,)), two),
        (PromptItem("1", "x", (pixels,), "n"), two),
    ]
    assert len({digest(*v) for v in variants}) == len(variants)


def test_a_saved_set_reads_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    items = [
        PromptItem("one", 'he said "hi",\nthen left', (pixels, picture(tmp_path / "set" / "own.png"))),
        PromptItem("two", "ünïcode", (picture(tmp_path / "elsewhere.png"),), "none"),
    ]
    found = load_prompt_set(save_prompt_set(items, tmp_path / "set" / "saved.csv"))
    assert [(i.id, i.prompt, i.negative) for i in found] == [(i.id, i.prompt, i.negative) for i in items]
    assert np.array_equal(np.asarray(Image.open(found[0].references[0])), pixels)
    assert (tmp_path / "set" / "saved.csv").read_text().count(str(tmp_path)) == 1


def test_a_path_that_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match="rename the file"):
        save_prompt_set([PromptItem("one", "x", (picture(tmp_path / "a;b.png"),))], tmp_path / "saved.csv")


def many(tmp_path: Path, count: int, name: str = "set.csv", start: int = 0) -> str:
    return str(
        write(tmp_path, "ref_paths,prompt", *[f"a.png,prompt {i}" for i in range(start, start + count)], name=name)
    )


def settings(**changes):
    return make_config("paper", {"rollout": {"groups_per_update": 4}} | changes)


def test_rows_are_held_out_from_the_end(tmp_path):
    train, held_out = resolve_prompts(settings(prompts=many(tmp_path, 7), held_out=2))
    assert [i.prompt for i in train] == [f"prompt {i}" for i in range(5)]
    assert [i.prompt for i in held_out] == ["prompt 5", "prompt 6"]


def test_a_second_file_is_held_out(tmp_path):
    second = many(tmp_path, 2, "second.csv", start=100)
    train, held_out = resolve_prompts(settings(prompts=many(tmp_path, 5), evaluation_prompts=second))
    assert (len(train), len(held_out)) == (5, 2)


def test_a_set_smaller_than_an_update_says_the_numbers(tmp_path):
    with pytest.raises(
        UserError, match="has 3 rows to train on but an update needs 4 groups.*add 1 rows.*groups_per_update to 3"
    ):
        resolve_prompts(settings(prompts=many(tmp_path, 5), held_out=2))


def test_nothing_held_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="set evaluation_prompts to a second CSV, or held_out"):
        resolve_prompts(settings(prompts=many(tmp_path, 5)))


def test_everything_held_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="leaves nothing to train on"):
        resolve_prompts(settings(prompts=many(tmp_path, 5), held_out=5))


def test_held_out_items_that_are_trained_on_are_refused(tmp_path):
    second = many(tmp_path, 2, "second.csv", start=4)
    with pytest.raises(UserError, match="`row-2` of .*second.csv is also trained on .`row-6`"):
        resolve_prompts(settings(prompts=many(tmp_path, 5), evaluation_prompts=second))


def test_two_ways_to_hold_out_are_refused(tmp_path):
    with pytest.raises(UserError, match="set only one"):
        resolve_prompts(
            settings(prompts=many(tmp_path, 5), held_out=1, evaluation_prompts=many(tmp_path, 2, "second.csv", 9))
        )


def test_tinyworld_brings_its_own():
    train, held_out = resolve_prompts(make_config("tiny", {"iterations": 1, "evaluation": {"items": 3}}))
    assert len(train) == 64 and len(held_out) == 3
    assert not {i.content() for i in train} & {i.content() for i in held_out}
