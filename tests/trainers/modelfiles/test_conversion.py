"""Pickled files as .safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.errors import UserError
from trainers.modelfiles.conversion import convert_pickled, pickled_files


def test_every_tensor_stays_as_it_is(tmp_path):
    shared = torch.randn(4, 4)
    content = {"a": shared, "b": shared.T, "c": torch.ones(2, dtype=torch.bfloat16), "d": torch.arange(3), "n": 3}
    torch.save(content, tmp_path / "m.pth")
    assert convert_pickled(tmp_path / "m.pth") == tmp_path / "m.safetensors"
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == {"a", "b", "c", "d"}
    assert all(
        torch.equal(value, content[name]) and value.dtype == content[name].dtype for name, value in found.items()
    )


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pth")
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    assert convert_pickled(tmp_path / "m.pth") is None
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


def test_a_link_to_a_file_that_is_not_there_now_is_kept(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pth")
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "disk" / "m.safetensors")
    assert convert_pickled(tmp_path / "m.pth") is None
    assert (tmp_path / "m.safetensors").is_symlink()


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_damage_is_not_converted(tmp_path, value):
    torch.save({"a": torch.full((2, 2), value)}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="m.pth is damaged: a holds"):
        convert_pickled(tmp_path / "m.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_code_in_the_file_is_not_run(tmp_path):
    class RunsCode:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    torch.save({"a": RunsCode()}, tmp_path / "m.pth")
    with pytest.raises(UserError, match="m.pth .* is refused"):
        convert_pickled(tmp_path / "m.pth")
    assert not (tmp_path / "owned").exists()


def test_the_files_of_a_rewards_folder_are_found(tmp_path):
    for name in ("checkpoint-1/non_lora_state_dict.pth", "model.pth", "checkpoint-1/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in pickled_files(tmp_path)] == ["non_lora_state_dict.pth", "model.pth"]
    assert pickled_files(tmp_path / "model.pth") == [tmp_path / "model.pth"]
    with pytest.raises(UserError, match="there is no .*nothing"):
        pickled_files(tmp_path / "nothing")
