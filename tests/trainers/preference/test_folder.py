"""Pairs on disk: nothing that was voted is lost, and nothing wrong is read."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.errors import UserError
from trainers.pictures.clips import write_animation
from trainers.preference.folder import PairFolder
from trainers.preference.loss import A_BETTER, B_BETTER, INVALID, TIE


def clip(seed: int, frames: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 16, 16, 3), np.uint8)


def add(folder: PairFolder, seed: int = 0, **changes) -> str:
    return folder.add((clip(seed), clip(seed + 100)), [clip(seed + 200)[0]], "two people", fps=8.0, **changes).pair


@pytest.fixture
def folder(tmp_path: Path) -> PairFolder:
    return PairFolder(tmp_path / "pairs")


def test_a_vote_is_read_back_with_its_clips(folder: PairFolder) -> None:
    pair = add(folder)
    folder.vote(pair, "B", "anna")
    records = folder.read()
    record = records.pairs[pair]
    assert records.label(pair) == B_BETTER
    assert (folder.path / record.clip_a).is_file() and (folder.path / record.references[0]).is_file()
    assert record.prompt == "two people" and record.fps == 8.0
    assert [v.who for v in records.by_pair[pair]] == ["anna"]


def test_a_verdict_on_swapped_clips_is_about_the_pairs_own_sides(folder: PairFolder) -> None:
    pair = add(folder)
    folder.vote(pair, "A", "anna", swapped=True)
    assert folder.read().label(pair) == B_BETTER


def test_undo_takes_back_the_persons_newest_vote_only(folder: PairFolder) -> None:
    first, second = add(folder, 0), add(folder, 1)
    folder.vote(first, "A", "anna")
    folder.vote(second, "A", "anna")
    folder.vote(second, "B", "ben")
    assert folder.undo("anna").pair == second
    assert (folder.read().label(first), folder.read().label(second)) == (A_BETTER, B_BETTER)
    assert folder.undo("anna").pair == first and folder.undo("anna") is None


def test_most_votes_decide_and_equally_many_are_a_tie(folder: PairFolder) -> None:
    pair = add(folder)
    labels = []
    for verdict in ("skip", "A", "B", "B"):
        folder.vote(pair, verdict, "anna")
        labels.append(folder.read().label(pair))
    assert labels == [INVALID, A_BETTER, TIE, B_BETTER]


@pytest.mark.parametrize("torn", [b'{"vote": "x", "pa', b'{"vote": "x"', b"\xff\xfe"])
def test_a_line_torn_by_a_crash_loses_nothing_else(folder: PairFolder, torn: bytes) -> None:
    pair = add(folder)
    folder.vote(pair, "A", "anna")
    with open(folder.file, "ab") as file:
        file.write(torn)
    assert folder.read().label(pair) == A_BETTER
    folder.vote(pair, "A", "ben")
    assert len(folder.read().by_pair[pair]) == 2


def test_a_last_line_without_its_end_counts_and_stays(folder: PairFolder) -> None:
    pair = add(folder)
    folder.vote(pair, "A", "anna")
    folder.file.write_bytes(folder.file.read_bytes().rstrip(b"\n"))  # as some editors save it
    assert folder.read(folder.voted_size()).label(pair) == folder.read().label(pair) == A_BETTER
    folder.vote(pair, "A", "ben")
    assert [vote.who for vote in folder.read().votes.values()] == ["anna", "ben"]


def test_a_mark_that_an_editor_put_in_front_is_left_out(folder: PairFolder) -> None:
    pair = add(folder)
    folder.file.write_bytes(b"\xef\xbb\xbf" + folder.file.read_bytes())
    assert list(folder.read().pairs) == [pair]


def test_a_torn_vote_hides_no_earlier_one(folder: PairFolder) -> None:
    pair = add(folder)
    folder.vote(pair, "A", "anna")
    voted = folder.voted_size()
    with open(folder.file, "ab") as file:
        file.write(b'{"vote": "x", "pa')
    assert folder.voted_size() == voted > 0


@pytest.mark.parametrize(
    "line, problem",
    [
        ("no json", "no JSON"),
        (
            '{"vote": "v", "pair": "there-is-none", "verdict": "A", "who": "", "when": ""}',
            "which no line above it adds",
        ),
        ('{"pair": "p", "clip_a": "../a.webp", "clip_b": "b", "references": ["r"]}', "no path inside the folder"),
        ('{"pair": "p", "clip_a": "/a.webp", "clip_b": "b", "references": ["r"]}', "no path inside the folder"),
        ('{"pair": "p", "clip_a": "a", "clip_b": "b", "references": []}', "one picture per person"),
        ('{"pair": "p", "clip_a": "a", "clip_b": "b"}', "missing 1 required field: 'references'"),
        ('{"pair": "P!", "clip_a": "a", "clip_b": "b", "references": ["r"]}', "an id has"),
        ('{"pair": "p", "clip_a": "a", "clip_b": "b", "references": ["r"], "fps": "x"}', "frames per second"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(folder: PairFolder, line: str, problem: str) -> None:
    add(folder)
    with open(folder.file, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{problem}"):
        folder.read()


def test_every_line_that_cannot_be_used_is_named_ten_of_them_with_the_reason(folder: PairFolder) -> None:
    add(folder)
    with open(folder.file, "a") as file:
        file.write("no json\n" * 12)
    with pytest.raises(UserError) as raised:
        folder.read()
    _, *named, more = str(raised.value).splitlines()
    assert [line.split(":")[0].strip() for line in named] == [f"line {number}" for number in range(2, 12)]
    assert more == "  … and 2 more"


def test_votes_on_the_pair_of_a_line_that_cannot_be_read_are_no_errors_of_their_own(folder: PairFolder) -> None:
    folder.vote(add(folder), "A", "anna")
    pair, vote = folder.file.read_text().splitlines()
    folder.file.write_text(f"{pair[:-1]}\n{vote}\n")
    with pytest.raises(UserError, match=r"line 1: it is no JSON") as raised:
        folder.read()
    assert "line 2" not in str(raised.value)


def test_the_pairs_of_files_that_cannot_be_read_are_named(folder: PairFolder) -> None:
    whole, broken, missing = add(folder, 0), add(folder, 1), add(folder, 2)
    records = folder.read()
    (folder.path / records.pairs[broken].clip_b).write_bytes(b"broken")
    (folder.path / records.pairs[missing].references[0]).unlink()
    found = folder.unreadable(records)
    assert [text.split("`")[1] for text in found] == [broken, missing] and whole in records.pairs
    assert records.pairs[broken].clip_b in found[0] and "cannot be read" in found[0]


def test_an_unknown_verdict_is_refused_before_anything_is_written(folder: PairFolder) -> None:
    pair = add(folder)
    before = folder.file.read_bytes()
    with pytest.raises(UserError, match="verdict `C`"):
        folder.vote(pair, "C", "anna")
    assert folder.file.read_bytes() == before


def test_the_same_pair_added_again_is_the_same_line(folder: PairFolder) -> None:
    assert add(folder) == add(folder)
    assert len(folder.file.read_text().splitlines()) == 1
    assert len(list((folder.path / "clips").iterdir())) == 2


def test_fields_of_later_versions_are_ignored(folder: PairFolder) -> None:
    pair = add(folder)
    line = json.loads(folder.file.read_text()) | {"later": 1}
    folder.file.write_text(json.dumps(line) + "\n")
    assert list(folder.read().pairs) == [pair]


def test_two_folders_merge_with_files_votes_and_undos(folder: PairFolder, tmp_path: Path) -> None:
    other = PairFolder(tmp_path / "other")
    shared = add(folder)
    folder.vote(shared, "A", "anna")
    other.merge(folder)
    new = add(other, 5)
    other.vote(new, "B", "ben")
    other.undo("anna")
    assert folder.merge(other) == 3
    records = folder.read()
    folder.check_files(records)
    assert (records.label(shared), records.label(new)) == (INVALID, B_BETTER)
    assert folder.merge(other) == 0


def test_another_clip_of_the_same_name_is_never_taken_for_theirs(folder: PairFolder, tmp_path: Path) -> None:
    for number, name in enumerate(("ours", "theirs")):
        (tmp_path / name).mkdir()
        for file, seed in (("a.webp", number), ("b.webp", 7), ("r.webp", 8)):
            write_animation(clip(seed), tmp_path / name / file)
        record = {"pair": name, "clip_a": "a.webp", "clip_b": "b.webp", "references": ["r.webp"]}
        (tmp_path / name / "pairs.jsonl").write_text(json.dumps(record) + "\n")
    ours = PairFolder(tmp_path / "ours")
    with pytest.raises(UserError, match=r"theirs/a\.webp and .*ours/a\.webp are different files of one name"):
        ours.merge(PairFolder(tmp_path / "theirs"))
    assert list(ours.read().pairs) == ["ours"]


def test_a_missing_clip_is_named(folder: PairFolder) -> None:
    record = folder.read().pairs[add(folder)] if folder.exists() else None
    pair = add(folder)
    record = folder.read().pairs[pair]
    (folder.path / record.clip_b).unlink()
    with pytest.raises(UserError, match=f"{record.clip_b} is missing"):
        folder.check_files(folder.read())


def test_agreement_counts_pairs_that_a_person_saw_twice(folder: PairFolder) -> None:
    one, two, three = (add(folder, seed) for seed in range(3))
    for pair, verdict, swapped in ((one, "A", False), (two, "A", False), (three, "tie", False)):
        folder.vote(pair, verdict, "anna", swapped)
    folder.vote(one, "B", "anna", swapped=True)  # A again, seen from the other side
    folder.vote(two, "B", "anna")
    folder.vote(three, "A", "ben")
    found = folder.read().agreement("anna")
    assert (found.pairs, found.same, found.swapped, found.same_swapped) == (2, 1, 1, 1)


def _vote_often(path: str, pair: str, who: str) -> None:
    for _ in range(10):
        PairFolder(path).vote(pair, "A", who)


def test_several_programs_vote_at_a_time(folder: PairFolder) -> None:
    pair = add(folder)
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_vote_often, args=(str(folder.path), pair, who)) for who in ("anna", "ben")]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert len(folder.read().votes) == 20


def test_files_are_copied_as_they_are(folder: PairFolder, tmp_path: Path) -> None:
    source = write_animation(torch.from_numpy(clip(0)), tmp_path / "a.webp", 8)
    other = write_animation(torch.from_numpy(clip(1)), tmp_path / "b.webp", 8)
    record = folder.add((source, other), [clip(2)[0]])
    source.write_bytes(b"edited later")
    assert (folder.path / record.clip_b).read_bytes() == other.read_bytes()
    assert (folder.path / record.clip_a).read_bytes() != b"edited later"


def test_a_clip_that_cannot_be_read_is_not_added(folder: PairFolder, tmp_path: Path) -> None:
    write_animation(clip(0), tmp_path / "whole.webp")
    (tmp_path / "cut.webp").write_bytes((tmp_path / "whole.webp").read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut\.webp cannot be read"):
        folder.add((tmp_path / "whole.webp", tmp_path / "cut.webp"), [clip(1)[0]])
    assert not folder.exists()
