"""The reference's own numbers, and that `verify_case` reports other ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainers.errors import UserError
from trainers.parity.identity_reward import verify_case


def _copy(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository / "tests" / "golden" / "identity_reward", folder / "case"))


def test_the_released_scores_are_reproduced(repository: Path) -> None:
    checks = verify_case(repository / "tests" / "golden" / "identity_reward")
    assert [c.name for c in checks if not c.ok] == []
    exact = [c for c in checks if c.kind == "exact"]
    assert len(exact) == 4 * 6 and all(c.error == 0 for c in exact)
    pixels = [c for c in checks if c.name.endswith("rows")]
    assert len(pixels) == 8 and all(c.error == 0 for c in pixels)


def test_other_numbers_and_another_rate_are_errors(repository: Path, tmp_path: Path) -> None:
    case = _copy(repository, tmp_path)
    described = json.loads((case / "items.json").read_text(encoding="utf-8"))
    described["items"] = described["items"][:2]
    described["items"][0]["expected"]["score"] += 1e-3
    described["items"][1]["video_fps"] = 8.0
    (case / "items.json").write_text(json.dumps(described), encoding="utf-8")
    wrong = {c.name for c in verify_case(case) if not c.ok}
    assert {"item 0 score", "item 1 seconds per step", "item 1 positions", "item 1 score"} <= wrong
    assert "item 0 positions" not in wrong


def test_frames_that_are_not_the_stated_ones_are_refused(repository: Path, tmp_path: Path) -> None:
    case = _copy(repository, tmp_path)
    shutil.copy(case / "videos" / "item1.safetensors", case / "videos" / "item0.safetensors")
    with pytest.raises(UserError, match="does not give the frames"):
        verify_case(case)
