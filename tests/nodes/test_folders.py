"""The options of widgets, and that no other value becomes a path."""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from pathlib import Path

import pytest

OUTSIDE = [
    "../../secret.safetensors",
    "..\\..\\secret.safetensors",
    "/etc/passwd",
    "a/../../../secret.safetensors",
    "../secret: latest",
    "../adapter/",
    "",
    ".",
    "..",
    "/",
    "a",
    "a\0.safetensors",
    ["a"],
    {"a": 1},
    7,
    None,
]


@pytest.fixture(scope="module")
def folders(pack):
    return import_module("identity_grpo.nodes.folders")


@pytest.fixture
def base(folders, tmp_path, monkeypatch):
    """ComfyUI's folders, empty: models/<kind>, input, output and the runs."""
    import folder_paths

    for kind in ("loras", "diffusers", "diffusion_models", "text_encoders", "vae", folders.REWARDS):
        (tmp_path / "models" / kind).mkdir(parents=True)
        endings = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / "models" / kind)], endings))
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"get_{name}_directory", lambda name=name: str(tmp_path / name))
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / "user" / f"__{name}"))
    if hasattr(folder_paths, "filename_list_cache"):
        monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def touch(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def make_run(base: Path, name: str, exports=(), rows=()) -> str:
    run = base / "user" / "__identity_grpo" / "runs" / name
    touch(run / "config.yaml")
    touch(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for iteration in exports:
        touch(run / "exports" / f"{name}-{iteration:06d}.safetensors")
    return name


def measured(iteration: int, margin: float | None) -> dict:
    numbers = {"reward_mean": 0.0, "win": 0.5, "win_low": 0.0, "win_high": 1.0}
    return {"kind": "evaluation", "iteration": iteration, "margin": margin, **numbers}


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def test_files_and_adapter_folders_are_offered(folders, base):
    for name in (
        "a.safetensors",
        "deep/er/b.safetensors",
        "c.ckpt",
        "notes.txt",
        "peft/adapter_config.json",
        "x/y/adapter_config.json",
    ):
        touch(base / "models" / "loras" / name)
    found = folders.lora_choices(of_newest_run=False)
    assert found == ["a.safetensors", "deep/er/b.safetensors", "peft/", "x/y/"]


def test_every_offered_lora_is_found_inside_the_folder(folders, base):
    for name in ("a.safetensors", "deep/er/b.safetensors", "peft/adapter_config.json"):
        touch(base / "models" / "loras" / name)
    found = [folders.find_lora(choice).path for choice in folders.lora_choices(of_newest_run=False)]
    root = base / "models" / "loras"
    assert found == [root / "a.safetensors", root / "deep" / "er" / "b.safetensors", root / "peft"]


@pytest.mark.parametrize("choice", OUTSIDE)
def test_a_value_that_is_not_an_option_is_refused(folders, base, choice):
    touch(base / "secret.safetensors")
    touch(base / "models" / "adapter" / "adapter_config.json")
    touch(base / "models" / "loras" / "a" / "b.safetensors")
    make_run(base, "run-20260101-000000-abcd", [8])
    with pytest.raises(folders.UserError):
        folders.find_lora(choice)


def test_a_choice_made_on_windows_opens_on_linux_and_the_other_way_round(folders, base, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folders.os, "sep", "\\")
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda kind: ["deep\\b.safetensors"])
    touch(base / "models" / "loras" / "deep" / "b.safetensors")
    assert folders.lora_choices(of_newest_run=False) == ["deep/b.safetensors"]
    assert folders.find_lora("deep/b.safetensors").path == base / "models" / "loras" / "deep" / "b.safetensors"


def test_a_lora_that_was_deleted_after_it_was_listed_is_refused(folders, base, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_filename_list", lambda kind: ["gone.safetensors"])
    with pytest.raises(folders.UserError, match="no longer in models/loras"):
        folders.find_lora("gone.safetensors")


def test_the_fingerprint_follows_a_file(folders, base):
    path = touch(base / "models" / "loras" / "a.safetensors", "1")
    first = folders.find_lora("a.safetensors").fingerprint
    assert folders.find_lora("a.safetensors").fingerprint == first
    path.write_text("2")
    os.utime(path, ns=(1, 1))
    assert folders.find_lora("a.safetensors").fingerprint != first


@pytest.mark.parametrize("changed", ["adapter_config.json", "adapter_model.safetensors"])
def test_the_fingerprint_follows_each_file_of_an_adapter(folders, base, changed):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        touch(base / "models" / "loras" / "peft" / name)
    first = folders.find_lora("peft/").fingerprint
    (base / "models" / "loras" / "peft" / changed).write_text("more")
    assert folders.find_lora("peft/").fingerprint != first


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_come_first_the_newest_before_the_others(folders, base):
    touch(base / "models" / "loras" / "a.safetensors")
    old, new = make_run(base, "zebra-20260101-000000-aaaa"), make_run(base, "ant-20260102-000000-bbbb")
    names = ["newest run", new, old]
    assert folders.lora_choices() == [
        *(f"{n}: {which}" for n in names for which in ("latest", "best")),
        "a.safetensors",
    ]
    assert folders.run_choices() == names


def test_without_a_run_the_newest_is_listed_last(folders, base):
    """Saved graphs hold it, and a new node shows the first."""
    touch(base / "models" / "loras" / "a.safetensors")
    newest = ["newest run: latest", "newest run: best"]
    assert folders.lora_choices() == ["a.safetensors", *newest]
    assert folders.lora_choices(built_in=True) == ["a.safetensors", folders.BUILT_IN_LORA, *newest]


def test_the_runs_that_workflows_and_blueprints_follow_are_listed_without_a_run(folders, repository):
    files = [file for name in ("workflows", "subgraphs") for file in (repository / name).glob("*.json")]
    followed = {text for file in files for text in re.findall(r'"lora": "(newest run.*)"', file.read_text("utf-8"))}
    assert followed and followed <= set(folders.lora_choices())


def test_latest_is_the_newest_export_now(folders, base):
    run = make_run(base, "run-20260101-000000-abcd", [8, 16])
    first = folders.find_lora(f"{run}: latest")
    make_run(base, run, [24])
    second = folders.find_lora(f"{run}: latest")
    assert (first.path.name, second.path.name) == (f"{run}-000016.safetensors", f"{run}-000024.safetensors")
    assert first.fingerprint != second.fingerprint


def test_the_newest_run_is_looked_up_every_time(folders, base):
    make_run(base, "run-20260101-000000-abcd", [8])
    assert folders.find_lora("newest run: latest").label == "run-20260101-000000-abcd: latest"
    make_run(base, "other-20260102-000000-abcd", [1])
    assert folders.find_lora("newest run: latest").label == "other-20260102-000000-abcd: latest"


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([measured(8, 1.0), measured(16, 3.0), measured(24, 2.0)], 16),
        ([measured(8, 1.0), measured(16, 1.0)], 16),
        ([measured(12, 9.0), measured(8, 1.0)], 8),
        ([measured(8, None), measured(16, -1.0), {"kind": "train", "iteration": 24, "margin": 9.0}], 16),
        ([], 24),
    ],
)
def test_best_is_the_export_of_the_best_evaluation(folders, base, rows, best):
    run = make_run(base, "run-20260101-000000-abcd", [8, 16, 24], rows)
    assert folders.find_lora(f"{run}: best").path.name == f"{run}-{best:06d}.safetensors"


def test_a_run_without_a_lora_yet_is_refused(folders, base):
    run = make_run(base, "run-20260101-000000-abcd")
    with pytest.raises(folders.UserError, match="no LoRA yet"):
        folders.find_lora(f"{run}: latest")


def test_without_a_run_the_remedy_is_a_train_node(folders, base):
    with pytest.raises(folders.UserError, match="Train node"):
        folders.find_run("newest run")


def test_without_a_run_a_lora_may_be_a_file_instead(folders, base):
    with pytest.raises(folders.UserError, match="`newest run: latest` follows .* or choose a file of models/loras"):
        folders.find_lora("newest run: latest")


@pytest.mark.parametrize("choice", ["../../secret", "/", "", "run-20260101-000000-abcd/..", "run-2026"])
def test_a_run_is_found_by_its_whole_name_only(folders, base, choice):
    make_run(base, "run-20260101-000000-abcd")
    with pytest.raises(folders.UserError, match="no run"):
        folders.find_run(choice)


# --- everything else -------------------------------------------------------------------------------------------------


def test_models_are_built_in_folders_or_single_files(folders, base):
    touch(base / "models" / "diffusers" / "wan" / "transformer" / "config.json")
    touch(base / "models" / "diffusers" / "not-a-pipeline" / "config.json")
    touch(base / "models" / "diffusion_models" / "sub" / "vace.safetensors")
    choices = folders.policy_choices()
    assert choices[len(folders.POLICIES) :] == ["diffusers/wan", "diffusion_models/sub/vace.safetensors"]
    sources = [folders.policy_source(choice) for choice in choices]
    models = base / "models"
    assert sources == [
        "tinyworld",
        "tinyworld-phantom",
        str(models / "diffusers" / "wan"),
        str(models / "diffusion_models" / "sub" / "vace.safetensors"),
    ]


def test_gguf_and_pickled_originals_are_offered_where_they_can_be_read(folders, base):
    for name in (
        "diffusion_models/q/a.gguf",
        "diffusion_models/b.pth",
        "text_encoders/t.gguf",
        "vae/v.gguf",
        "loras/l.pth",
    ):
        touch(base / "models" / name)
    models = base / "models" / "diffusion_models"
    assert folders.policy_choices()[len(folders.POLICIES) :] == ["diffusion_models/b.pth", "diffusion_models/q/a.gguf"]
    assert folders.policy_source("diffusion_models/q/a.gguf") == str(models / "q" / "a.gguf")
    assert folders.part_choices("text_encoders") == [folders.WITH_MODEL, "t.gguf"]
    assert folders.part_choices("vae") == [folders.WITH_MODEL]
    assert folders.lora_choices(of_newest_run=False) == []


def test_control_blocks_are_files_with_vace_in_their_name(folders, base):
    touch(base / "models" / "diffusion_models" / "Wan2_1-VACE_module_1_3B_bf16.safetensors")
    touch(base / "models" / "diffusion_models" / "Wan2_1-T2V-1_3B_bf16.safetensors")
    assert folders.module_choices() == ["none", "Wan2_1-VACE_module_1_3B_bf16.safetensors"]
    assert folders.module_source("none") is None
    assert folders.module_source(folders.module_choices()[1]).endswith(
        "diffusion_models/" + folders.module_choices()[1]
    )
    with pytest.raises(folders.UserError, match="there is no file `../x`"):
        folders.module_source("../x")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "TinyWorld VACE (built in)"),
        (["diffusion_models/flux1-dev.safetensors", "vae/vace.safetensors"], "TinyWorld VACE (built in)"),
        (
            ["diffusion_models/flux.safetensors", "diffusion_models/w/Wan2_1_VACE.safetensors"],
            "diffusion_models/w/Wan2_1_VACE.safetensors",
        ),
        (["diffusers/Phantom-1.3B/transformer/config.json"], "diffusers/Phantom-1.3B"),
    ],
)
def test_the_default_model_is_a_real_one_where_there_is_one(folders, base, files, expected):
    for name in files:
        touch(base / "models" / name)
    assert folders.default_policy(folders.policy_choices()) == expected


def test_a_folder_in_two_roots_is_that_of_the_first_which_holds_the_mark(folders, base):
    import folder_paths

    second = base / "elsewhere"
    folder_paths.folder_names_and_paths["diffusers"][0].append(str(second))
    (base / "models" / "diffusers" / "wan").mkdir()
    touch(second / "wan" / "transformer" / "config.json")
    assert folders.policy_source("diffusers/wan") == str(second / "wan")


def test_rewards_and_their_base_models_are_kept_apart(folders, base):
    rewards = base / "models" / folders.REWARDS
    touch(rewards / "vace" / "model_config.json")
    touch(rewards / "vace" / "config.json")
    touch(rewards / "qwen" / "config.json")
    assert folders.reward_choices() == [folders.BUILT_IN, "vace"]
    assert folders.base_choices() == [folders.AS_CHECKPOINT, "qwen"]
    assert (
        folders.reward_source("vace") == str(rewards / "vace")
        and folders.reward_source(folders.BUILT_IN) == "tinyworld"
    )
    assert folders.base_source("qwen") == str(rewards / "qwen") and folders.base_source(folders.AS_CHECKPOINT) is None


def test_a_base_model_may_be_a_file_of_the_text_encoders(folders, base):
    for name in ("qwen_2.5_vl_fp16.safetensors", "umt5_xxl_fp16.safetensors"):
        touch(base / "models" / "text_encoders" / name)
    assert folders.base_choices() == [folders.AS_CHECKPOINT, "text_encoders/qwen_2.5_vl_fp16.safetensors"]
    source = folders.base_source("text_encoders/qwen_2.5_vl_fp16.safetensors")
    assert source == str(base / "models" / "text_encoders" / "qwen_2.5_vl_fp16.safetensors")


@pytest.mark.parametrize("find", ["policy_source", "reward_source", "base_source", "prompt_set_path"])
@pytest.mark.parametrize(
    "choice", ["../../secret", "diffusers/../../secret", "diffusion_models/../../secret.safetensors", "/etc/passwd", ""]
)
def test_no_other_path_is_accepted(folders, base, find, choice):
    for name in (
        "secret/transformer/config.json",
        "secret/model_config.json",
        "secret/config.json",
        "secret.safetensors",
    ):
        touch(base / name)
    with pytest.raises(folders.UserError, match="refresh"):
        getattr(folders, find)(choice)


def test_a_part_lies_beside_the_model_or_in_its_folder(folders, base):
    touch(base / "models" / "vae" / "wan.safetensors")
    assert folders.part_choices("vae") == [folders.WITH_MODEL, "wan.safetensors"]
    assert folders.part_source("vae", "wan.safetensors") == str(base / "models" / "vae" / "wan.safetensors")
    assert folders.part_source("vae", folders.WITH_MODEL) is None
    with pytest.raises(folders.UserError, match="models/vae"):
        folders.part_source("vae", "../loras/wan.safetensors")


def test_prompt_sets_are_found_at_any_depth_of_the_input_folder(folders, base):
    for name in ("b.csv", "people/a.csv", "people/face.png"):
        touch(base / "input" / name)
    assert folders.prompt_set_choices() == [*folders.BUILT_IN_SETS, "b.csv", "people/a.csv"]
    assert folders.prompt_set_path("people/a.csv") == base / "input" / "people" / "a.csv"


def test_prompt_sets_are_listed_again_when_a_folder_changes(folders, base, monkeypatch):
    walks = []
    walk = os.walk
    monkeypatch.setattr(folders.os, "walk", lambda root: walks.append(root) or walk(root))

    def listed() -> list[str]:
        return folders.prompt_set_choices()[len(folders.BUILT_IN_SETS) :]

    touch(base / "input" / "people" / "a.csv")
    assert listed() == listed() == ["people/a.csv"] and len(walks) == 1
    touch(base / "input" / "people" / "b.csv")
    assert listed() == ["people/a.csv", "people/b.csv"] and len(walks) == 2
    (base / "input" / "people" / "a.csv").unlink()
    assert listed() == ["people/b.csv"]


def test_a_csv_names_pictures_of_the_input_and_output_folders_only(folders, base):
    inside = touch(base / "input" / "a.png"), touch(base / "output" / "b.png")
    outside = touch(base / "secret.png"), touch(base / "input-of-another" / "c.png")
    assert all(map(folders.may_read, inside))
    assert not any(map(folders.may_read, [*outside, base / "input" / ".." / "secret.png"]))


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_out_of_the_input_folder_is_not_read(folders, base):
    (base / "input" / "link.png").symlink_to(touch(base / "secret.png"))
    assert not folders.may_read(base / "input" / "link.png")
