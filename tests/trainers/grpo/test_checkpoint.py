"""Checkpoints whose files were changed since, also by someone who wrote new digests for them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.config import make_config
from trainers.diffusion.schedule import flow_schedule
from trainers.errors import UserError
from trainers.grpo import checkpoint
from trainers.grpo.checkpoint import DamagedCheckpoint, TrainingState, capture, load_checkpoint, save_checkpoint
from trainers.grpo.ranks import Ranks
from trainers.grpo.update import PolicyUpdate
from trainers.lora.inject import add_lora
from trainers.runs.folder import RunFolder
from trainers.tinyworld.models import build_vace

STATE = TrainingState(iteration=1, updates=2, policy="vace", prompts="set", best_iteration=1, best_margin=0.25)
NAME = "blocks.0.attn1.to_q.lora_A.weight"


@pytest.fixture(scope="module")
def update() -> PolicyUpdate:
    """A LoRA of rank 2 after two optimiser steps."""
    transformer = build_vace()
    add_lora(transformer, 2, 2.0, 0)
    config = make_config("tiny", {"lora": {"rank": 2, "alpha": 2}})
    update = PolicyUpdate(SimpleNamespace(transformer=transformer), config, flow_schedule(8, 3.0), Ranks())
    for number in (1, 2):
        for parameter in update.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        update.step(number)
    return update


@pytest.fixture
def saved(update, tmp_path) -> Path:
    return save_checkpoint(tmp_path, capture(STATE, update))


def load(folder: Path, update: PolicyUpdate) -> TrainingState:
    return load_checkpoint(folder, "vace", "set", update)


def redone(folder: Path, file: str, change) -> None:
    """Change the tensors of a file, and write the digest that fits them."""
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    progress = json.loads((folder / "progress.json").read_text())
    progress["sha256"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "progress.json").write_text(json.dumps(progress))


def test_a_checkpoint_reads_back(saved, update):
    assert load(saved, update) == STATE
    assert update.optimiser.state[update.parameters[NAME]]["step"] == 2


@pytest.mark.parametrize("best", [-math.inf, 1.0, 0.1])
def test_every_margin_reads_back(update, tmp_path, best):
    state = TrainingState(0, 0, "vace", "set", 0, best)
    update = SimpleNamespace(parameters={}, ema=SimpleNamespace(average={}), optimiser=SimpleNamespace(state={}))
    assert checkpoint.read_state(save_checkpoint(tmp_path, capture(state, update)))[0] == state


@pytest.mark.parametrize("name, value", [("updates", 3), ("best_iteration", 0), ("best_margin", 9.5)])
def test_a_number_of_the_state_that_was_changed_is_noticed(saved, update, name, value):
    progress = json.loads((saved / "progress.json").read_text()) | {name: value}
    (saved / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(DamagedCheckpoint, match="progress.json is not what was written"):
        load(saved, update)


@pytest.mark.parametrize("digests", [None, 7, ["state", "lora", "ema", "optimiser"], {"lora": "x"}])
def test_digests_of_another_form_are_damage(saved, update, digests):
    progress = json.loads((saved / "progress.json").read_text()) | {"sha256": digests}
    (saved / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        load(saved, update)


CHANGES = {
    "no step": ("optimiser", lambda t: t.pop(f"{NAME}|step"), r"first difference: .*step"),
    "no moment": ("optimiser", lambda t: t.pop(f"{NAME}|exp_avg"), r"first difference: .*exp_avg"),
    "one more": ("optimiser", lambda t: t.update({"x": torch.ones(1)}), "first difference: x"),
    "other shape": ("optimiser", lambda t: t.update({f"{NAME}|exp_avg": torch.ones(3)}), r"shape \[3\], expected"),
    "step of a shape": ("optimiser", lambda t: t.update({f"{NAME}|step": torch.ones(1)}), r"shape \[1\], expected"),
    "other step": ("optimiser", lambda t: t[f"{NAME}|step"].fill_(9), "is 9 after 2 updates"),
    "nan moment": ("optimiser", lambda t: t[f"{NAME}|exp_avg"].fill_(math.nan), "optimiser holds .*not finite"),
    "negative": ("optimiser", lambda t: t[f"{NAME}|exp_avg_sq"].fill_(-1), "is negative"),
    "nan weight": ("lora", lambda t: t[NAME].fill_(math.nan), "lora holds .*not finite"),
    "infinite average": ("ema", lambda t: t[NAME].fill_(math.inf), "ema holds .*not finite"),
    "integers": ("lora", lambda t: t.update({NAME: t[NAME].long()}), "lora holds .*int64"),
}


@pytest.mark.parametrize("file, change, sentence", CHANGES.values(), ids=CHANGES)
def test_tensors_that_do_not_fit_are_damage_and_change_nothing(saved, update, file, change, sentence):
    before = capture(STATE, update).tensors
    redone(saved, file, change)
    with pytest.raises(DamagedCheckpoint, match=sentence):
        load(saved, update)
    after = capture(STATE, update).tensors
    assert all(torch.equal(after[f][n], tensor) for f, own in before.items() for n, tensor in own.items())


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda p: p.symlink_to("nowhere")])
def test_a_damaged_checkpoint_is_set_aside_whatever_has_that_name(update, tmp_path, make):
    run = RunFolder.create(tmp_path, make_config("tiny"))
    good = save_checkpoint(run.checkpoints_folder, capture(STATE, update))
    bad = shutil.copytree(good, good.with_name("000003"))
    make(bad.with_name("000003.damaged"))
    state, said = checkpoint.load_newest(run, "vace", "set", update)
    assert state == STATE and "Resumed from iteration 1" in said
    assert (run.checkpoints_folder / "000003.damaged" / "progress.json").is_file() and not bad.exists()


def test_a_checkpoint_of_another_rank_is_no_damage(saved, update):
    redone(saved, "lora", lambda tensors: tensors.update({NAME: torch.ones(3, 128)}))
    with pytest.raises(UserError, match="rank differ") as raised:
        load(saved, update)
    assert not isinstance(raised.value, DamagedCheckpoint)
