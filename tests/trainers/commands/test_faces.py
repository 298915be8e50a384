"""`faces` on a clip of real faces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main
from trainers.pictures.clips import write_animation

PICTURES = Path(__file__).parents[1] / "faces" / "pictures"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two portraits beside each other, two frames."""
    people = [Image.open(PICTURES / f"{name}.jpg").convert("RGB").resize((160, 160)) for name in ("collins", "obama")]
    frame = np.concatenate([np.asarray(person) for person in people], 1)
    return write_animation(np.stack([frame] * 2), tmp_path_factory.mktemp("faces") / "clip.webp", 2)


def references(*names: str) -> list[str]:
    return ["--references", *(str(PICTURES / f"{name}.jpg") for name in names)]


def test_it_prints_a_row_per_person_and_writes_what_is_asked(clip, tmp_path, capsys):
    written = ["--picture", str(tmp_path / "who.png"), "--save", str(tmp_path / "numbers.json")]
    assert main(["faces", str(clip), *references("obama", "hopper"), *written]) == 0
    printed = capsys.readouterr().out
    assert "faces 0.50 (100% of the frames judged)" in printed and "person 2 is missing in 100%" in printed
    (numbers,) = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["people"][0]["seen"] == 1 and numbers["people"][1]["seen"] == 0
    assert Image.open(tmp_path / "who.png").width > 900


def test_nothing_is_written_unless_asked(clip, capsys):
    before = sorted(clip.parent.iterdir())
    assert main(["faces", str(clip), *references("obama")]) == 0
    assert sorted(clip.parent.iterdir()) == before


def test_a_command_without_a_clip_is_refused(capsys):
    assert main(["faces", *references("obama")]) == 2
    assert "name the clips before --references" in capsys.readouterr().err


def test_a_picture_of_two_clips_is_refused(clip, tmp_path, capsys):
    assert main(["faces", str(clip), str(clip), *references("obama"), "--picture", str(tmp_path / "x.png")]) == 2
    assert "--picture shows one clip" in capsys.readouterr().err
