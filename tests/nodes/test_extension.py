"""What the pack changes in ComfyUI when it is loaded."""

from __future__ import annotations


def test_the_type_of_an_error_is_shown_without_the_path_of_the_pack(pack):
    """Core shows `<module>.<name>: <message>`; the modules of a pack are called by its folder's path."""
    assert (pack.UserError.__module__, pack.UserError.__qualname__) == ("identity_grpo", "UserError")


def test_the_folder_of_rewards_is_one_of_comfyuis(pack):
    import folder_paths

    assert [path.rpartition("models")[2].strip("/\\") for path in folder_paths.get_folder_paths("identity_reward")] == [
        "identity_reward"
    ]
