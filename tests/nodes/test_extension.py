"""What the pack changes in ComfyUI when it is loaded."""

from __future__ import annotations

from importlib import import_module


def test_the_type_of_an_error_is_shown_without_the_path_of_the_pack(pack):
    """Core shows `<module>.<name>: <message>`; the modules of a pack are called by its folder's path."""
    busy = import_module("identity_grpo.trainers.runs.devices").DeviceBusy
    shown = [f"{kind.__module__}.{kind.__qualname__}" for kind in (pack.UserError, busy)]
    assert shown == ["identity_grpo.UserError", "identity_grpo.DeviceBusy"]


def test_the_folder_of_rewards_is_one_of_comfyuis(pack):
    import folder_paths

    assert [path.rpartition("models")[2].strip("/\\") for path in folder_paths.get_folder_paths("identity_reward")] == [
        "identity_reward"
    ]
