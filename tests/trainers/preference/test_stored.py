"""The pairs of a folder as training reads them, and the tables that they are imported from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.errors import UserError
from trainers.pictures.clips import write_animation
from trainers.preference.folder import PairFolder
from trainers.preference.importing import import_table
from trainers.preference.stored import Part, StoredPairs, hold_out
from trainers.rewards.geometry import frame_indices, seconds_per_step


def clip(seed: int, frames: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (frames, 16, 16, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> PairFolder:
    """Twelve pairs of six people, every fourth without a verdict."""
    folder = PairFolder(tmp_path / "pairs")
    for i in range(12):
        verdict = ("A", "B", "tie", None)[i % 4]
        folder.add(
            (clip(i), clip(100 + i)), [clip(1000 + i // 2)[0]], fps=8.0, verdict=verdict, who="anna", kind="test"
        )
    return folder


def test_pairs_without_a_verdict_are_left_out(folder: PairFolder) -> None:
    assert [pair.label for pair in StoredPairs(folder)] == [1, -1, 0] * 3


def test_only_the_frames_that_the_reward_reads_are_kept_at_a_rate_that_fits(folder: PairFolder) -> None:
    pair = StoredPairs(folder)[0]
    assert (pair.video_a == clip(0)[frame_indices(9, 4)]).all() and (pair.references[0] == clip(1000)[0]).all()
    assert seconds_per_step(4, pair.fps) == pytest.approx(seconds_per_step(9, 8.0))


def test_held_out_pairs_share_no_people_with_the_others(folder: PairFolder) -> None:
    pairs = StoredPairs(folder)
    train, held = hold_out(pairs.records, 0.3)
    people = [{name for place in part for name in pairs.records[place].references} for part in (train, held)]
    assert held and not people[0] & people[1]
    assert sorted(train + held) == list(range(len(pairs))) and len(Part(pairs, held)) == len(held)
    assert hold_out(pairs.records, 0.3) == (train, held) != hold_out(pairs.records, 0.3, seed=5)


def test_pairs_that_all_hang_together_cannot_be_held_out(tmp_path: Path) -> None:
    folder = PairFolder(tmp_path / "pairs")
    for i in range(3):
        folder.add((clip(i), clip(i + 1)), [clip(9)[0]], verdict="A", who="anna")
    with pytest.raises(UserError, match="none can be held out"):
        hold_out(StoredPairs(folder).records, 0.3)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A table and folders as the published reward's training has them."""
    lines = ["path_A,path_B,prompt,num_frames_A,num_frames_B,SA"]
    for i, verdict in enumerate(("A", "B", "same", "invalid")):
        part = tmp_path / "data" / f"pair{i}"
        part.mkdir(parents=True)
        for side in "AB":
            write_animation(clip(10 * i + ord(side)), part / f"{side}.webp", 10)
        for person in (1, 2):
            Image.fromarray(clip(500 + person)[0]).save(part / f"reference_img00{person}.png")
        lines.append(f'pair{i}/A.webp,pair{i}/B.webp,"two people, talking",9,9,{verdict}')
    (tmp_path / "meta_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "meta_data.csv"


def test_the_published_table_is_imported_with_the_pictures_beside_its_clips(published: Path, tmp_path: Path) -> None:
    folder = PairFolder(tmp_path / "pairs")
    assert import_table(published, folder, tmp_path / "data") == 4
    records = folder.read()
    assert [records.label(pair) for pair in records.pairs] == [1, -1, 0, 22]
    first = next(iter(records.pairs.values()))
    assert len(first.references) == 2 and first.prompt == "two people, talking"
    assert import_table(published, folder, tmp_path / "data") == 4 and len(folder.read().votes) == 4


def test_a_table_names_its_references_and_may_lack_verdicts(published: Path, tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    name = "data/pair0/reference_img001.png"
    table.write_text(f"path_A;path_B;ref_paths;verdict;who\ndata/pair0/A.webp;data/pair0/B.webp;{name};;ben\n")
    folder = PairFolder(tmp_path / "pairs")
    import_table(table, folder)
    (record,) = folder.read().pairs.values()
    assert len(record.references) == 1 and folder.read().votes == {}


GOOD = "path_A,path_B,SA\ndata/pair0/A.webp,data/pair0/B.webp,A\n"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("path_A,path_b,SA\n", "lacks the columns path_B.*did you mean `path_b`"),
        ("path_A,path_B\n", "lacks the columns verdict"),
        ("path_A,path_B,SA\n", "has no rows"),
        ("path_A,path_B,SA\nnone.mp4,none.mp4,A\n", "row 2: there is no file"),
        ("path_A,path_B,SA\ndata/pair0/A.webp,data/pair0/B.webp,maybe\n", "row 2: the verdict `maybe`"),
        (GOOD + "data/pair0/A.webp,,A\n", "row 3: `path_A` or `path_B` is empty"),
        (GOOD + "data/pair0/A.webp,data/pair0/cut.webp,A\n", "row 3: clip .*cut.webp cannot be read"),
        (GOOD + "data/pair0/A.webp,/dev/zero,A\n", "row 3: there is no clip /dev/zero"),
        (GOOD.replace("SA", "SA,prompt") + 'data/pair1/A.webp,data/pair1/B.webp,A,"two\n', "no CSV near line 3"),
        (GOOD.replace("SA", "SA,prompt") + f"data/pair1/A.webp,data/pair1/B.webp,A,{'x' * 200_000}\n", "near line 3"),
        (GOOD.replace("SA", "SA,who") + f"data/pair1/A.webp,data/pair1/B.webp,A,{'x' * 2000}\n", "row 3: `who` has"),
    ],
)
def test_a_table_that_cannot_be_used_adds_nothing(published: Path, tmp_path: Path, text: str, problem: str) -> None:
    table = tmp_path / "bad.csv"
    table.write_text(text)
    (tmp_path / "data/pair0/cut.webp").write_bytes((tmp_path / "data/pair0/A.webp").read_bytes()[:300])
    folder = PairFolder(tmp_path / "pairs")
    with pytest.raises(UserError, match=problem):
        import_table(table, folder)
    assert not folder.path.exists()
