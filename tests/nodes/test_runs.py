"""Starting and looking at runs from a graph: once for the same settings, on a free device, with every reason told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

# As the first workflow is tested with: who comes second finds the run there.
TINY = {"iterations": 1, "groups_per_update": 2, "evaluate_every": 5, "name": "tiny"}


@pytest.fixture(scope="module")
def parts(run_node) -> dict:
    """What a Train node wants: TinyWorld."""
    return {
        "policy": run_node("IdentityGRPOLoadModel")[0],
        "reward": run_node("IdentityGRPOLoadReward")[0],
        "prompt_set": run_node("IdentityGRPOPromptSet", file="TinyWorld: training (built in)")[0],
    }


@pytest.fixture(scope="module")
def finished(run_node, parts):
    """A run of one iteration that has reached its end."""
    (run,) = run_node("IdentityGRPOTrain", **parts, **TINY)
    run_node("IdentityGRPORun", training_run=run, wait="for the end")
    return run


@pytest.fixture(scope="module")
def long_run(run_node, parts, finished):
    """A run that goes on until the tests are through."""
    from trainers.runs.launcher import stop

    (run,) = run_node(
        "IdentityGRPOTrain", **parts, iterations=500, groups_per_update=2, name="long", seed=int(time.time())
    )
    yield run
    stop(run, wait=20)


def test_a_run_reaches_its_end_and_its_lora_lies_among_comfyuis(run_node, finished):
    import folder_paths

    assert finished.status().state == "finished"
    published = Path(folder_paths.get_folder_paths("loras")[0]) / "identity_grpo" / finished.id
    assert [p.name for p in published.iterdir()] == [p.name for p in finished.exports_folder.iterdir()]


def test_the_same_settings_show_the_run_and_start_no_second_one(run_node, parts, finished):
    from trainers.runs.registry import list_runs

    before = len(list_runs(finished.path.parent))
    (again,) = run_node("IdentityGRPOTrain", **parts, **TINY)
    assert again.id == finished.id and len(list_runs(finished.path.parent)) == before


def test_it_says_that_the_run_was_there_already(node_output, parts, finished):
    assert "have a run already" in node_output("IdentityGRPOTrain", **parts, **TINY).ui["text"][0]


def test_looking_gives_choices_that_load_lora_understands(run_node, parts, finished):
    latest, best, curve, clips, status = run_node("IdentityGRPORun", training_run=finished)
    assert "finished, iteration 1 of 1" in status
    for choice in (latest, best):
        (policy,) = run_node("IdentityGRPOLoadLoRA", policy=parts["policy"], lora=choice)
        assert policy.lora.path.parent == finished.exports_folder
    assert curve.shape[1] > 200 and clips.shape[0] == 9


def test_the_newest_run_is_found_without_a_link(run_node, finished):
    latest, *_ = run_node("IdentityGRPORun", run=finished.id)
    assert latest == f"{finished.id}: latest"


def test_starting_a_run_loads_no_model_here(run_node, parts, finished):
    fresh = {"policy": run_node("IdentityGRPOLoadModel")[0], "reward": run_node("IdentityGRPOLoadReward")[0]}
    run_node("IdentityGRPOTrain", **parts | fresh, **TINY)
    assert not any("value" in vars(part.model) for part in fresh.values())


def test_going_on_from_a_run_that_has_ended_is_one_run_however_often_it_is_queued(run_node, parts, finished):
    settings = TINY | {"name": "further", "start_lora": f"{finished.id}: latest"}
    (run,) = run_node("IdentityGRPOTrain", **parts, **settings)
    (again,) = run_node("IdentityGRPOTrain", **parts, **settings)
    run_node("IdentityGRPORun", training_run=run, wait="for the end")
    assert run.id == again.id != finished.id and Path(run.config().start_lora).parent == finished.exports_folder


def test_a_second_run_on_the_device_is_refused_and_leaves_nothing(run_node, parts, long_run):
    from trainers.runs.registry import list_runs

    before = len(list_runs(long_run.path.parent))
    with pytest.raises(ValueError, match=f"{long_run.id}.*choose another device"):
        run_node("IdentityGRPOTrain", **parts, **TINY, seed=5)
    assert len(list_runs(long_run.path.parent)) == before


def test_a_run_that_was_deleted_is_not_taken_from_comfyuis_cache(pack, finished):
    import shutil

    node, other = pack.nodes["IdentityGRPOTrain"], finished.path.with_name("other-20200101-000000-abcd")
    shutil.copytree(finished.path, other)
    before = node.fingerprint_inputs()
    shutil.rmtree(other)
    assert node.fingerprint_inputs() != before


def test_its_fingerprint_follows_the_run(pack, long_run):
    node = pack.nodes["IdentityGRPORun"]
    before = node.fingerprint_inputs(run="newest run", training_run=None, wait="no")
    long_run.set_status(message="something new")
    assert node.fingerprint_inputs(run="newest run", training_run=None, wait="no") != before


def test_cancel_ends_the_waiting_and_not_the_run(run_node, long_run, monkeypatch):
    import comfy.model_management as management

    class Cancelled(BaseException):
        pass

    def cancel():
        raise Cancelled

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(Cancelled):
        run_node("IdentityGRPORun", training_run=long_run, wait="for the end")
    assert long_run.status().state in ("starting", "running")


def test_a_failed_run_is_told_with_its_reason(run_node, finished, tmp_path):
    import shutil

    from trainers.runs.folder import RunFolder

    shutil.copytree(finished.path, tmp_path / finished.id)
    run = RunFolder(tmp_path / finished.id)
    run.set_status(state="failed", last_error="NaN in the reward of item 3")
    assert "NaN in the reward of item 3" in run_node("IdentityGRPORun", training_run=run)[-1]
    with pytest.raises(ValueError, match="NaN in the reward of item 3"):
        run_node("IdentityGRPORun", training_run=run, wait="for the end")


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"frames": 10}, "frames 10 must be 4n"),
        ({"width": 80}, "both width and height"),
        ({"width": 100, "height": 48}, "multiple of 16"),
        ({"width": 100000, "height": 48}, "at most 4096"),
        ({"devices": "GPU 77"}, "devices `GPU 77` is not offered"),
        ({"preset": "slow"}, "preset `slow` is not offered"),
        ({"start_lora": "gone.safetensors"}, "there is no LoRA"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(run_node, pack, parts, wrong, told):
    with pytest.raises(pack.Refused, match=told):
        run_node("IdentityGRPOTrain", **parts, **wrong)


def test_too_few_rows_are_told_before_a_run_is_made(run_node, parts):
    row = {"references": {"ref0": torch.rand(1, 16, 16, 3)}}
    (rows,) = run_node("IdentityGRPOPromptItem", prompt="a wave", **row)
    (rows,) = run_node("IdentityGRPOPromptItem", prompt="a dance", prompt_set=rows, **row)
    with pytest.raises(ValueError, match="1 rows to train on but an update needs 16"):
        run_node("IdentityGRPOTrain", **parts | {"prompt_set": rows}, seed=9)


def test_a_lora_that_still_changes_is_nothing_to_start_from(run_node, pack, parts, long_run):
    run_node("IdentityGRPORun", training_run=long_run, wait="for the first LoRA")
    for choice in (f"{long_run.id}: latest", "newest run: best"):
        with pytest.raises(pack.Refused, match="still changes"):
            run_node("IdentityGRPOTrain", **parts, **TINY, start_lora=choice)


def test_tinyworlds_recipe_is_refused_for_another_model(run_node, parts):
    from dataclasses import replace

    real = replace(parts["policy"], config=parts["policy"].config.model_copy(update={"source": "diffusers/wan"}))
    with pytest.raises(ValueError, match="choose `fast` or `paper`"):
        run_node("IdentityGRPOTrain", **parts | {"policy": real}, preset="tiny")


def test_a_linked_run_goes_before_one_that_is_gone(run_node, pack, finished):
    *_, status = run_node("IdentityGRPORun", run="long-gone-20200101-000000", training_run=pack.Linked(finished))
    assert status.startswith(finished.id)


@pytest.mark.parametrize(
    "choice, own, count, taken",
    [
        ("auto", "cuda:0", 3, [1, 2]),
        ("auto", "cuda:1", 2, [0]),
        ("auto", "cuda:0", 1, [0]),
        ("auto", "cpu", 2, [0, 1]),
        ("auto", "cpu", 0, []),
        ("all GPUs", "cuda:0", 2, [0, 1]),
        ("GPU 1", "cuda:0", 2, [1]),
        ("CPU", "cuda:0", 2, []),
    ],
)
def test_auto_is_every_gpu_but_comfyuis_or_the_only_one(pack, monkeypatch, choice, own, count, taken):
    from identity_grpo.nodes import runs

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(runs.management, "get_torch_device", lambda: torch.device(own))
    assert choice in runs.device_choices()
    assert runs.chosen_gpus(choice) == taken


def test_tinyworlds_sets_are_not_taken_for_each_other(run_node, parts):
    (held_out, *_) = run_node("IdentityGRPOPromptSet", file="TinyWorld: held out (built in)")
    for swapped in ({"prompt_set": held_out}, {"evaluation_set": parts["prompt_set"]}):
        with pytest.raises(ValueError, match=f"`{next(iter(swapped))}` is TinyWorld's other set"):
            run_node("IdentityGRPOTrain", **parts | swapped)


def test_a_phantom_model_gets_the_recipe_of_its_kind(parts, run_node):
    from identity_grpo.nodes.runs import _preset

    (phantom,) = run_node("IdentityGRPOLoadModel", model="TinyWorld Phantom (built in)")
    assert [_preset(choice, phantom) for choice in ("auto", "fast", "paper")] == [
        "tiny-phantom",
        "fast-phantom",
        "paper-phantom",
    ]
    assert _preset("auto", parts["policy"]) == "tiny"


def test_a_run_that_is_not_there_is_refused(run_node, pack, finished):
    with pytest.raises(pack.Refused, match="there is no run"):
        run_node("IdentityGRPORun", run="../../etc")


def test_waiting_for_the_first_lora_waits_for_one_that_has_learned(run_node, long_run):
    run_node("IdentityGRPORun", training_run=long_run, wait="for the first LoRA")
    assert max(p.stem for p in long_run.exports_folder.glob("*.safetensors"))[-6:] != "000000"
