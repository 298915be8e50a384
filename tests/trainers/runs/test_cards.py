"""What a list of runs shows, and how often it is read again."""

from __future__ import annotations

import os

from trainers.config import make_config
from trainers.runs import cards as module
from trainers.runs.cards import card, cards
from trainers.runs.folder import RunFolder


def test_only_runs_that_train_or_have_changed_are_read_again(tmp_path, monkeypatch):
    runs = [RunFolder.create(tmp_path, make_config("tiny"), name) for name in ("old", "renamed", "trains")]
    for run in runs[:2]:
        run.set_status(state="stopped")
    runs[2].set_status(state="running")
    read = []
    monkeypatch.setattr(module, "card", lambda run: read.append(run.name) or card(run))
    assert [shown["id"] for shown in cards(runs)] == [run.id for run in runs]
    runs[1].rename("another title")
    os.utime(runs[1].path / "title.txt", (1, 1))  # whatever the resolution of the disk's clock
    assert [shown["title"] for shown in cards(runs)] == ["", "another title", ""]
    assert read == ["old", "renamed", "trains", "renamed", "trains"]
