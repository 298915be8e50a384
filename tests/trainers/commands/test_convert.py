"""The command that converts pickled weights."""

from __future__ import annotations

import shutil

from safetensors.torch import load_file

from trainers.cli import main
from trainers.rewards.checkpoint import read_weights
from trainers.rewards.folder import find_checkpoint


def test_a_reward_of_safetensors_alone_has_the_same_weights(repository, tmp_path, capsys):
    shutil.copytree(repository / "tests" / "golden" / "identity_reward" / "identity_reward", tmp_path / "reward")
    before = read_weights(find_checkpoint(tmp_path / "reward")).full
    assert main(["convert", str(tmp_path / "reward")]) == 0
    assert "non_lora_state_dict.pth: written as non_lora_state_dict.safetensors" in capsys.readouterr().out
    (pickled,) = tmp_path.glob("reward/*/*.pth")
    pickled.unlink()
    assert load_file(pickled.with_suffix(".safetensors"))
    after = read_weights(find_checkpoint(tmp_path / "reward")).full
    assert before.keys() == after.keys() and all((value == after[name]).all() for name, value in before.items())


def test_nothing_is_said_to_be_done_where_there_is_nothing_to_convert(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert main(["convert", str(tmp_path)]) == 2
    assert "holds no pickled file" in capsys.readouterr().err
