"""Prompt sets: which files are read, and the messages about those that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers import prompts
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


def test_references_are_relative_to_the_csv_not_to_the_working_folder(tmp_path, monkeypatch):
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
        (["ref_paths,prompt", "a.png,\u200b\u2060 \ufe0f"], "row 2: the prompt is empty"),
        (["ref_paths,prompt", "people,x"], "row 2: reference image .*people is a folder, not a picture"),
        (["sep=|", "ref_paths|prompt", "a.png|x|y"], r"row 2: has 3 fields .* contains `\|`"),
        (["ref_paths,prompt", "a.png,x", "", "b.png,"], "row 4: the prompt is empty"),
        (["ref_paths,prompt", "a.png,x", "b.png,one, two"], "row 3: has 3 fields where the header has 2; put quotes"),
        (["ref_paths,prompt", "a.png;none.png,x"], "row 2: reference image .*none.png is missing"),
        (["ref_paths,prompt,id", "a.png,x,one", "b.png,y,one"], "row 3: id `one` is already used in row 2"),
        (["ref_paths,prompt", 'a.png,"x'], "row 2: .*check the quotes"),
    ],
)
def test_a_fault_names_its_row(tmp_path, rows, sentence):
    path = write(tmp_path, *rows)
    (tmp_path / "people").mkdir()
    with pytest.raises(UserError, match=sentence):
        load_prompt_set(path)


def test_a_file_that_is_no_picture_is_found_before_training(tmp_path):
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
    message = problems(path)
    assert message.count("none.png is missing") == 10 and "row 11" in message and "and 3 more" in message


def test_a_set_that_is_not_utf8_says_what_to_do(tmp_path):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x")
    path.write_bytes(path.read_bytes() + "ü".encode("latin-1"))
    assert "save it as `CSV UTF-8`" in problems(path)


def read(tmp_path: Path, data: str | bytes, name: str = "raw.csv") -> PromptSet:
    """The set of a file with exactly this content, beside the pictures a, b and c."""
    path = write(tmp_path, "", name=name)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load_prompt_set(path)


@pytest.mark.parametrize(
    "text",
    [
        'ref_paths;prompt\r\n"a.png;b.png";first, second\r\n',
        'sep=;\r\nref_paths;prompt\r\n"a.png;b.png";first, second\r\n',
        'SEP=,\rref_paths,prompt\ra.png;b.png,"first, second"\r',
        'sep=,\nref_paths;prompt\n"a.png;b.png";first, second\n',
        "ref_paths\tprompt\na.png;b.png\tfirst, second\n",
        "sep=|\nref_paths|prompt\na.png;b.png|first, second\n",
        '"sep=^"\nref_paths^prompt\n"a.png;b.png"^first, second\n',
        'ref_paths, "prompt"\n"a.png;b.png", "first, second"\n',
        'sep="\nref_paths,prompt\na.png;b.png,"first, second"\n',
        '"sep=\t"\r\nref_paths\tprompt\r\n"a.png;b.png"\tfirst, second\r\n',
        'Ref_Paths , PROMPT\na.png;b.png,"first, second"\n',
        'note;x,ref_paths,prompt\nn,a.png;b.png,"first, second"\n',
        '"ref_paths";"prompt";"a, note"\n"a.png;b.png";"first, second";""\n',
        'ref_paths,prompt\na.png;b.png,"first, second",,\n,,,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_the_delimiter_of_the_header_is_used(tmp_path, text, encoding):
    start = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (item,) = read(tmp_path, start + text.encode(encoding))
    assert item.prompt == "first, second"
    assert [path.name for path in item.references] == ["a.png", "b.png"]


def test_blank_rows_are_skipped_and_counted(tmp_path):
    found = read(tmp_path, "\r\nref_paths;prompt\r\n;\r\na.png;x\r\n \r\nb.png;y\r\n;\r\n")
    assert [(item.id, item.prompt) for item in found] == [("row-4", "x"), ("row-6", "y")]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("ref_paths,prompt,prompt\na.png,x,y\n", "row 1: column `prompt` is there twice"),
        ("ref_paths;Prompt;ref_paths;prompt \na.png;x;b.png;y\n", "column `ref_paths` and `prompt` is there twice"),
        ("id,ref_paths,prompt,ID\n1,a.png,x,2\n", "column `id` is there twice"),
        (
            "ref_paths;prompt\na.png;b.png;x\n",
            "row 2: has 3 fields .* put quotes around a text that contains semicolons",
        ),
        ("ref_paths\tprompt\na.png\tx\ty\n", "row 2: has 3 fields .* contains tabs"),
        ("ref_paths|prompt\na.png|x\n", r"found: ref_paths\|prompt.*separated by commas, semicolons or tabs"),
        ('ref_paths;prompt\na.png;"x" y\n', "row 2: .*a text with semicolons stands in"),
        ("sep=;\n", "is empty"),
        (f"ref_paths,prompt\ndata:image/png;base64{'A' * 140_000},x\n", "row 2: .*names of files, not pictures"),
    ],
)
def test_a_table_that_is_ambiguous_is_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, text)


def test_two_columns_that_are_ignored_may_share_a_name(tmp_path):
    assert read(tmp_path, "ref_paths,prompt,note,note,,\na.png,x,1,2,,\n")[0].prompt == "x"


def test_an_invisible_id_is_the_row_s(tmp_path):
    assert read(tmp_path, "ref_paths,prompt,id\na.png,x,\u200b\n")[0].id == "row-2"


@pytest.mark.parametrize("text, prompt", [("a \ud83d b", "a  b"), ("a \ud83d", "a")])
def test_half_an_emoji_in_utf_16_is_removed(tmp_path, text, prompt):
    data = f"ref_paths,prompt\na.png,{text}".encode("utf-16", "surrogatepass")
    assert read(tmp_path, data)[0].prompt.strip() == prompt


def test_utf_16_that_is_cut_off_is_refused_as_what_it_is(tmp_path):
    with pytest.raises(UserError, match=r"is cut off \(byte \d+: truncated data\)"):
        read(tmp_path, "ref_paths,prompt\na.png,x".encode("utf-16")[:-1])


def test_blank_rows_without_end_are_refused_early(tmp_path):
    with pytest.raises(UserError, match="more than 1048576 rows, blank ones included"):
        read(tmp_path, "\n" * (2 << 20))


def test_as_many_blank_rows_as_a_spreadsheet_has_are_skipped(tmp_path):
    assert len(read(tmp_path, "ref_paths,prompt\na.png,x\n" + ",\n" * (prompts.MAX_LINES - 2))) == 1


def test_utf_16_without_its_mark_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="not UTF-8 .*save it as `CSV UTF-8`"):
        read(tmp_path, "ref_paths,prompt\na.png,x\n".encode("utf-16-le"))


@pytest.mark.parametrize(
    "cell",
    [
        "~nobody-here/a.png",
        "~",
        "A woman and a man walk through the park. " * 10,
        "data:image/png;base64" + "iVBORw0KGgo" * 40,
        "a\0b.png",
        "none/" * 2000,
        "\ufeff",
    ],
)
def test_a_reference_that_is_no_path_is_missing_in_its_row(tmp_path, cell):
    with pytest.raises(UserError, match="row 2: reference image .* (is missing|is a folder|cannot be read)") as caught:
        read(tmp_path, f'ref_paths,prompt\n"{cell}",x\n')
    assert len(str(caught.value)) < 900


def test_a_file_whose_name_begins_with_a_tilde_is_usable(tmp_path):
    picture(tmp_path / "~tmp.png", 5)
    (item,) = read(tmp_path, "ref_paths,prompt\n~tmp.png,x\n")
    assert item.references == (tmp_path / "~tmp.png",)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    picture(tmp_path / "home" / "a.png", 5)
    assert read(tmp_path, "ref_paths,prompt\n~/a.png,x\n")[0].references == (tmp_path / "home" / "a.png",)
    write(tmp_path / "home", "ref_paths,prompt", "b.png,x")
    assert load_prompt_set("~/set.csv")[0].references[0].is_file()


@pytest.mark.pipes
def test_pipes_are_refused_as_sets_and_as_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a file" in problems(tmp_path / "pipe")
    assert "row 2: reference image" in problems(write(tmp_path, "ref_paths,prompt", "pipe,x"))


@pytest.mark.parametrize("name", ["~nobody-here/set.csv", "x" * 5000, "a\0b.csv", "~\0"])
def test_a_set_that_is_no_path_is_a_user_error(tmp_path, name):
    assert "there is no such file" in problems(name)


def test_a_set_of_too_many_rows_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_ROWS", 3)
    assert len(read(tmp_path, "ref_paths,prompt\n" + "a.png,x\n" * 3)) == 3
    monkeypatch.setattr(prompts.os.path, "isfile", lambda path: str(path).endswith(".csv"))
    with pytest.raises(UserError, match="more than 3 rows, the maximum"):
        read(tmp_path, "ref_paths,prompt\n" + "a.png,x\n" * 4)


def test_a_set_of_too_many_bytes_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(Path, "read_bytes", None)
    path = tmp_path / "set.csv"
    with path.open("wb") as file:
        file.truncate((1 << 20) + 1)
    assert "larger than 1 MB" in problems(path)


# --- once per picture ------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """A list that grows by every picture that is decoded to be checked."""
    paths: list[Path] = []
    check = prompts._picture_problem
    monkeypatch.setattr(prompts, "_picture_problem", lambda path: paths.append(path) or check(path))
    return paths


def test_a_picture_is_decoded_once_until_it_changes(tmp_path, decoded):
    path = write(tmp_path, "ref_paths,prompt", "a.png;b.png,x", "b.png;a.png,y")
    for _ in range(3):
        load_prompt_set(path)
    assert sorted(p.name for p in decoded) == ["a.png", "b.png"]
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    assert "b.png cannot be read" in problems(path)
    assert "b.png cannot be read" in problems(path), "the verdict is kept as well"
    assert len(decoded) == 3


def test_a_picture_of_the_same_size_that_was_written_later_is_decoded_again(tmp_path, decoded):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x")
    load_prompt_set(path)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    load_prompt_set(path)
    assert len(decoded) == 2


def test_without_decoding_a_set_is_checked_for_missing_files_and_other_formats(tmp_path, decoded):
    path = write(tmp_path, "ref_paths,prompt", "a.png,x", "none.png,y", "text.png,z")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match="row 3: .*none.png is missing") as caught:
        load_prompt_set(path, decode=False)
    assert "row 4" in str(caught.value) and "row 2" not in str(caught.value)
    assert decoded == []


def test_a_refused_picture_is_not_accessed(tmp_path, decoded):
    path = write(tmp_path, "ref_paths,prompt", "a.png;none.png,x")
    with pytest.raises(UserError) as caught:
        load_prompt_set(path, lambda picture: f"{picture.name} is forbidden")
    assert "a.png is forbidden" in str(caught.value) and "missing" not in str(caught.value)
    assert decoded == []


def test_files_are_hashed_once_until_they_change(tmp_path, monkeypatch):
    items = load_prompt_set(write(tmp_path, "ref_paths,prompt", "a.png,x", "a.png;b.png,y"))
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    contents = [item.content() for item in items for _ in range(3)]
    assert len(set(contents)) == 2 and len(reads) == 2
    picture(tmp_path / "a.png", 77)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert items[0].content() != contents[0]


def test_the_content_of_an_item_whose_picture_was_deleted_is_a_user_error(tmp_path):
    (item,) = load_prompt_set(write(tmp_path, "ref_paths,prompt", "a.png,x"))
    item.content()
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png is missing"):
        item.content()


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, clean",
    [
        ("a \ud83d", "a "),
        ("\ude00 b", " b"),
        ("\ud83d x \ud83d\ude00", " x \U0001f600"),
        ("\U0001f600 \u4e00 \u00fc \ufeff", "\U0001f600 \u4e00 \u00fc \ufeff"),
        ("plain", "plain"),
    ],
)
def test_half_an_emoji_is_removed_where_an_item_is_made(text, clean):
    item = PromptItem("x" + text, text, (), text)
    assert (item.id, item.prompt, item.negative) == ("x" + clean, clean, clean)
    assert item.content() == PromptItem("y", clean, (), clean).content()


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
    os.utime(tmp_path / "two" / "z.png", ns=(1, 1))  # both may be written within one tick of the clock
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
        PromptItem("three", "a\rb; c\td\r\n'e', \"f\"", (pixels,), "sep=;"),
    ]
    found = load_prompt_set(save_prompt_set(items, tmp_path / "set" / "saved.csv"))
    assert [(i.id, i.prompt, i.negative) for i in found] == [(i.id, i.prompt, i.negative) for i in items]
    assert np.array_equal(np.asarray(Image.open(found[0].references[0])), pixels)
    assert (tmp_path / "set" / "saved.csv").read_text().count(str(tmp_path)) == 1


def test_a_picture_whose_path_is_not_utf_8_cannot_be_written_down(tmp_path):
    item = PromptItem("one", "x", (tmp_path / os.fsdecode(b"caf\xe9.png"),))
    with pytest.raises(UserError, match="item `one`: the reference path .* is not UTF-8"):
        save_prompt_set([item], tmp_path / "set.csv")
    assert not (tmp_path / "set.csv").exists()


def test_a_set_that_is_not_complete_is_not_there(tmp_path, monkeypatch):
    """A run takes the CSV for a complete set: it is written last, and at once."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    items = [PromptItem("one", "x", (pixels,)), PromptItem("two", "y", (pixels,))]
    save, calls = Image.Image.save, []

    def fail_at_the_second(self, file, **options):
        calls.append(file)
        if len(calls) == 2:
            Path(file).write_bytes(b"half")
            raise OSError("disk")
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", fail_at_the_second)
    with pytest.raises(OSError, match="disk"):
        save_prompt_set(items, tmp_path / "set.csv")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["0000-0.png"]


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
    with pytest.raises(UserError, match="a second CSV with --evaluation-prompts, or give with --held-out"):
        resolve_prompts(settings(prompts=many(tmp_path, 5)))


def test_everything_held_out_is_refused(tmp_path):
    with pytest.raises(UserError, match="leaves nothing to train on"):
        resolve_prompts(settings(prompts=many(tmp_path, 5), held_out=5))


def test_held_out_items_that_are_trained_on_are_refused(tmp_path):
    second = many(tmp_path, 2, "second.csv", start=4)
    with pytest.raises(UserError, match="`row-2` of .*second.csv is also trained on .`row-6`"):
        resolve_prompts(settings(prompts=many(tmp_path, 5), evaluation_prompts=second))


def test_two_ways_to_hold_out_are_refused(tmp_path):
    with pytest.raises(UserError, match="both name .*; give only one"):
        resolve_prompts(
            settings(prompts=many(tmp_path, 5), held_out=1, evaluation_prompts=many(tmp_path, 2, "second.csv", 9))
        )


def test_tinyworld_brings_its_own():
    train, held_out = resolve_prompts(make_config("tiny", {"iterations": 1, "evaluation": {"items": 3}}))
    assert len(train) == 64 and len(held_out) == 3
    assert not {i.content() for i in train} & {i.content() for i in held_out}
