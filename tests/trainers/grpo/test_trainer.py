"""The loop's invariants, on small models of the real classes. Nothing is mocked: processes are killed, files are full.

What a policy has a part in is tried with each kind of them, the rest (`one_kind`) with one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.config import PolicyConfig, TrainConfig, make_config
from trainers.errors import UserError
from trainers.grpo import evaluate, trainer, update
from trainers.lora.formats import LoRA, read_lora, write_native
from trainers.memory.sizes import read_sizes
from trainers.policies import load
from trainers.policies.transformer_file import load_transformer
from trainers.runs.folder import RunFolder
from trainers.runs.inputs import RunInputs, run_inputs

from ..modelfiles.synthetic import scaled_fp8, transformer_weights
from .small_run import SMALL, Forge

one_kind = pytest.mark.parametrize("kind", ["vace"], indirect=True)
# How the processes of a run share the work: each with videos and models of its own, with a part of the transformer,
# with a part of it and of every video.
APART = pytest.param({}, id="apart")
SHARDED = pytest.param({"memory": {"plan": "sharded"}}, id="sharded")
TOGETHER = pytest.param({"memory": {"plan": "sharded"}, "parallel": {"context": 2}}, id="together")
EXPORTED = (".safetensors", ".webp")  # a LoRA and its preview
FEW = {"groups_per_update": 1, "updates_per_iteration": 1}  # rollouts: where only what is written counts
# More motion than the base policy has is asked for, so that not all videos have enough.
MOTION = {"rewards": {"motion": {"weight": 2.0, "enough": 10.0}}}
FLOAT_ERROR = 2e-5  # of weights that an iteration moves by about the learning rate, 2e-3


def merged(base: dict, changes: dict) -> dict:
    return base | {k: merged(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in changes.items()}


@pytest.fixture(scope="module")
def prompts(small_models, tmp_path_factory) -> Path:
    """Six rows to train on and two held out, of one and two people in turn: what cannot share a batch."""
    faces = Path(small_models["prompts"]).parent
    rows = [
        f"{';'.join(str(faces / f'face{(i + k) % 8}.png') for k in range(1 + i % 2))},two people wave" for i in range(8)
    ]
    path = tmp_path_factory.mktemp("prompts") / "mixed.csv"
    path.write_text("\n".join(["ref_paths,prompt", *rows]))
    return path


@pytest.fixture(scope="module", params=["vace", "phantom"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def small_config(kind, small_models, small_phantom, prompts):
    """Two iterations of two updates, with changes laid over."""
    base = merged(merged(SMALL, small_models), {"prompts": str(prompts)})
    if kind == "phantom":
        base["policy"] = small_phantom
    return lambda **changes: make_config("tiny", merged(base, changes))


@pytest.fixture(scope="module")
def finished(forge, tmp_path_factory, small_config):
    """A function: a run of its own folder that nothing disturbed."""

    def run(**changes) -> RunFolder:
        run = RunFolder.create(tmp_path_factory.mktemp("runs"), small_config(**changes))
        assert forge.run(run) == [0], forge.errors.read_text()[-3000:]
        return run

    return run


@pytest.fixture(scope="module")
def reference_run(finished) -> RunFolder:
    """Two iterations that nothing disturbed."""
    return finished()


@pytest.fixture(scope="module")
def moving_run(finished) -> RunFolder:
    """As the reference, with the guard rail of motion."""
    return finished(**MOTION)


@pytest.fixture
def halfway(reference_run, tmp_path) -> RunFolder:
    """A run to spoil: a copy of the reference that stands at iteration 1."""
    run = RunFolder(shutil.copytree(reference_run.path, tmp_path / reference_run.id))
    shutil.rmtree(run.checkpoints_folder / "000002")
    run.truncate_metrics(1)
    return run


INPUTS: dict[str, RunInputs] = {}


def train(config: TrainConfig, run: RunFolder, **options):
    """Train in this process; a prompt set is read, and its faces are looked for, once."""
    if config.prompts not in INPUTS:
        INPUTS[config.prompts] = run_inputs(config)
    return trainer.train(config, run, INPUTS[config.prompts], **options)


def weights(run: RunFolder, iteration: int | None = None) -> dict[str, torch.Tensor]:
    """Of the checkpoint of an iteration, by default the newest."""
    folder = run.checkpoints()[-1] if iteration is None else run.checkpoints_folder / f"{iteration:06d}"
    return {
        f"{part}.{n}": t
        for part in ("lora", "ema", "optimiser")
        for n, t in load_file(folder / f"{part}.safetensors").items()
    }


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max((a[n] - b[n]).abs().max().item() for n in a)


def rows(run: RunFolder, kind: str) -> list[dict]:
    return [row for row in run.read_metrics() if row["kind"] == kind]


def told(run: RunFolder, kind: str) -> list[dict]:
    """The numbers of the rows without what only a clock says."""
    return [{k: v for k, v in row.items() if v is not None and not k.startswith("seconds")} for row in rows(run, kind)]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def refused(config: TrainConfig, run: RunFolder, sentence: str) -> None:
    """Resuming fails with the sentence, the status says so, and the checkpoint is as it was."""
    before = files(run.checkpoints()[-1])
    with pytest.raises(UserError, match=sentence) as raised:
        train(config, run, resume=True)
    assert run.status().state == "failed"
    assert run.status().last_error == str(raised.value)
    assert files(run.checkpoints()[-1]) == before


# --- what training does ----------------------------------------------------------


def test_ratio_is_exactly_one_at_the_first_on_policy_update(reference_run):
    assert [row["ratio_error"] for row in rows(reference_run, "train")] == [0.0, 0.0]


def test_the_last_update_shows_how_far_the_policy_has_moved(reference_run):
    moved = [(row["approx_kl"], row["clipfrac"]) for row in rows(reference_run, "train")]
    assert all(kl > 0 and 0 <= clipped <= 1 for kl, clipped in moved) and moved[0] != moved[1]


def test_guarded_ratio_is_exactly_one_at_the_first_on_policy_update(finished, kind):
    """With all branches of guidance, on a half-precision base."""
    scales = {"dynamics": "flow_sde", "guidance": 3.0} | ({"image_guidance": 2.0} if kind == "phantom" else {})
    run = finished(
        iterations=1, optim={"ratio": "guard", "clip_range": 2e-6}, rollout=scales, policy={"dtype": "bfloat16"}
    )
    assert rows(run, "train")[0]["ratio_error"] == 0.0


def test_training_moves_the_weights_and_the_average_follows(reference_run):
    start, end, average = (
        load_file(reference_run.checkpoints_folder / name)
        for name in ("000000/lora.safetensors", "000002/lora.safetensors", "000002/ema.safetensors")
    )
    assert distance(start, end) > 1e-3
    assert 0 < distance(average, end) < 0.5 * distance(start, end)


def test_the_kl_is_zero_before_the_policy_has_moved_and_positive_after(reference_run):
    before, after = (row["kl"] for row in rows(reference_run, "train"))
    assert before == 0.0 < after


def test_the_untouched_policy_is_measured_first_and_the_last_one_too(reference_run):
    """Defect 24: the published trainer never measures where it started."""
    first, last = rows(reference_run, "evaluation")
    assert (first["iteration"], first["win"], first["tie"], first["margin"]) == (0, 0.0, 1.0, 0.0)
    assert last["iteration"] == 2 and last["win"] + last["tie"] + last["loss"] == pytest.approx(1)


def test_the_first_export_moves_no_pixel(reference_run):
    ups = [
        v
        for k, v in load_file(reference_run.exports_folder / f"{reference_run.id}-000000.safetensors").items()
        if "lora_up" in k
    ]
    assert ups and not any(u.any() for u in ups)


def test_exports_carry_the_names_of_comfyui_and_what_they_are_for(reference_run, kind):
    """Ten attention layers of two kinds for Phantom; VACE has two control blocks more."""
    with safe_open(reference_run.exports_folder / f"{reference_run.id}-000002.safetensors", "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
    modules = {key.removesuffix(".alpha") for key in keys if key.endswith(".alpha")}
    pattern = r"diffusion_model\.(?:vace_)?blocks\.\d\.(?:self|cross)_attn\.[qkvo]"
    assert all(re.fullmatch(pattern, name) for name in modules)
    assert len(modules) == {"vace": 5 + 2, "phantom": 5}[kind] * 8 and len(keys) == 3 * len(modules)
    assert (metadata["policy"], metadata["iteration"]) == (kind, "2")


@one_kind
def test_every_export_is_published_under_the_run_s_name_and_stays_there(halfway, small_config, tmp_path):
    shutil.rmtree(halfway.exports_folder)
    halfway.exports_folder.mkdir()
    train(small_config(publish=str(tmp_path / "loras")), halfway, resume=True)
    published = tmp_path / "loras" / halfway.id
    assert sorted(files(published)) == [f"{halfway.id}-00000{i}{kind}" for i in (1, 2) for kind in EXPORTED]
    assert files(published) == files(halfway.exports_folder)
    assert halfway.status().message == ""


@one_kind
def test_a_lora_that_cannot_be_published_is_told_and_ends_nothing(halfway, small_config, tmp_path):
    (tmp_path / "loras").write_text("a file where the folder should be")
    assert train(small_config(publish=str(tmp_path / "loras")), halfway, resume=True).state == "finished"
    assert re.search(
        r"-000002.safetensors could not be published to .*loras.* it is in .*exports", halfway.status().message
    )


@one_kind
def test_shuffled_rewards_are_the_same_rewards_but_train_something_else(finished, reference_run):
    run = finished(iterations=1, reward={"shuffle": True})
    assert rows(run, "train")[0]["reward_mean"] == rows(reference_run, "train")[0]["reward_mean"]
    assert (
        distance(
            load_file(run.checkpoints_folder / "000001/lora.safetensors"),
            load_file(reference_run.checkpoints_folder / "000001/lora.safetensors"),
        )
        > 1e-3
    )


@one_kind
def test_evaluated_iterations_are_saved_and_the_best_is_kept(finished):
    run = finished(iterations=3, checkpoint={"every": 10, "keep": 1}, evaluation={"every": 1}, rollout=FEW)
    best = max(rows(run, "evaluation"), key=lambda row: (row["margin"], -row["iteration"]))["iteration"]
    assert {int(p.name) for p in run.checkpoints()} == {best, 3}


# --- the same for any split of the work ----------------------------------------------------------


@pytest.mark.parametrize("rollout, update", [(3, 1), (1, 2)])
def test_micro_batches_change_nothing(finished, reference_run, rollout, update):
    """In an iteration, whose second update is off-policy."""
    batches = {"rollout": {"micro_batch": rollout}, "optim": {"micro_batch": update}, "reward": {"micro_batch": 3}}
    run = finished(iterations=1, **batches)
    assert distance(weights(run), weights(reference_run, 1)) < FLOAT_ERROR
    (row,), expected = rows(run, "train"), rows(reference_run, "train")[0]
    assert row["reward_mean"] == pytest.approx(expected["reward_mean"], abs=1e-3)


@one_kind
@pytest.mark.parametrize("changes", [APART, TOGETHER])
def test_two_processes_do_what_one_does(forge, moving_run, small_config, tmp_path, changes):
    """With two rewards, for two iterations: the second one depends on all of the first."""
    run = RunFolder.create(tmp_path, small_config(**MOTION, **changes))
    assert forge.run(run, processes=2) == [0, 0], forge.errors.read_text()[-3000:]
    assert distance(weights(run), weights(moving_run)) < FLOAT_ERROR
    for kind in ("train", "evaluation"):
        for row, expected in zip(told(run, kind), told(moving_run, kind), strict=True):
            assert row.pop("kind") == expected.pop("kind")
            assert row == pytest.approx(expected, rel=1e-2, abs=1e-4)


@one_kind
@pytest.mark.parametrize("changes", [APART, SHARDED])
def test_processes_without_work_keep_step(forge, finished, small_config, tmp_path, changes):
    """Three processes for two rollouts and two held-out items: one has nothing to add and must still take part."""
    few = {"iterations": 1, "optim": {"kl": 0.0}, "rollout": {"groups_per_update": 1}}
    run = RunFolder.create(tmp_path, small_config(**few, **changes))
    assert forge.run(run, processes=3) == [0, 0, 0], forge.errors.read_text()[-3000:]
    assert distance(weights(run), weights(finished(**few))) < FLOAT_ERROR


@one_kind
@pytest.mark.parametrize("changes", [APART, TOGETHER])
def test_an_error_in_one_process_ends_all_with_its_message(forge, small_config, tmp_path, changes):
    run = RunFolder.create(tmp_path, small_config(**changes))
    assert forge.run(run, processes=2, fault="error", iteration=0) == [1, 1]
    assert (run.status().state, run.status().last_error) == ("failed", "a fault of the last process")


# --- several rewards ----------------------------------------------------------


@one_kind
def test_every_reward_is_in_the_metrics_and_trains(moving_run, reference_run):
    first, expected = rows(moving_run, "train")[0], rows(reference_run, "train")[0]
    assert first["reward_mean"] == expected["reward_mean"]
    assert 0 < first["reward_motion"] <= 1 and "reward_motion" not in expected
    assert distance(weights(moving_run), weights(reference_run)) > 1e-3


@one_kind
def test_a_resumed_run_of_several_rewards_is_the_same_to_the_bit(forge, moving_run, tmp_path):
    run = RunFolder(shutil.copytree(moving_run.path, tmp_path / moving_run.id))
    shutil.rmtree(run.checkpoints_folder / "000002")
    run.truncate_metrics(1)
    assert forge.run(run, resume=True) == [0], forge.errors.read_text()[-3000:]
    assert distance(weights(run), weights(moving_run)) == 0.0
    assert told(run, "train") == told(moving_run, "train")


# --- interrupted ----------------------------------------------------------


@pytest.mark.parametrize("plan, rewards", [("phases", "same"), ("block_swap", "own"), ("resident", "own")])
def test_every_memory_plan_and_rewards_beside_give_the_same_run_to_the_bit(finished, reference_run, plan, rewards):
    run = finished(iterations=1, memory={"plan": plan}, reward={"device": rewards})
    assert distance(weights(run), weights(reference_run, 1)) == 0.0
    for kind in ("train", "evaluation"):
        assert told(run, kind)[0] == told(reference_run, kind)[0]


@one_kind
def test_8bit_weights_kept_as_stored_give_the_run_of_converted_ones_to_the_bit(finished, small_config, tmp_path):
    policy = small_config().policy
    transformer = load_transformer(Path(policy.source) / "transformer")
    config = {"config": json.dumps({"transformer": dict(transformer.config)})}
    save_file(scaled_fp8(transformer_weights(transformer)), tmp_path / "fp8.safetensors", config)
    parts = {part: str(Path(policy.source) / part) for part in ("text_encoder", "vae")}
    given = parts | {"source": str(tmp_path / "fp8.safetensors"), "dtype": "bfloat16"}
    converted, stored = (
        finished(iterations=1, policy=given | {"weights": choice}, memory={"plan": "block_swap"})
        for choice in ("converted", "stored")
    )
    assert distance(weights(stored), weights(converted)) == 0.0
    assert read_sizes(stored.config()).transformer < read_sizes(converted.config()).transformer


@one_kind
def test_a_stop_while_items_are_encoded_is_a_stop(small_config, tmp_path):
    run = RunFolder.create(tmp_path, small_config(memory={"plan": "phases"}))
    run.request("stop")
    assert train(run.config(), run).state == "stopped"
    assert run.status().state == "stopped" and not run.checkpoints()


@one_kind
def test_a_run_beside_another_needs_no_text_encoder(finished, reference_run, small_config, tmp_path):
    """All its texts are known: the weights of the encoder are read for their digest, never loaded."""
    shutil.copytree(reference_run.path.parent / "encodings", tmp_path / "encodings")
    run = RunFolder.create(tmp_path, small_config(iterations=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_text_encoder", lambda *_: pytest.fail("the text encoder was loaded"))
        train(run.config(), run)
    assert distance(weights(run), weights(reference_run, 1)) < FLOAT_ERROR


def killed_and_resumed(forge: Forge, run: RunFolder, phase: str, iteration: int) -> RunFolder:
    """The run after SIGKILL in that phase, and its continuation to the end."""
    assert forge.run(run, fault=phase, iteration=iteration) == [-signal.SIGKILL]
    assert run.checkpoints()[-1].name == f"{iteration:06d}"
    assert forge.run(run, resume=True) == [0], forge.errors.read_text()[-3000:]
    return run


def test_a_run_killed_in_an_update_resumes_to_the_same_weights(forge, reference_run, small_config, tmp_path):
    run = killed_and_resumed(forge, RunFolder.create(tmp_path, small_config()), "update", 1)
    assert distance(weights(run), weights(reference_run)) == 0.0
    for kind in ("train", "evaluation"):
        assert told(run, kind) == told(reference_run, kind)


@one_kind
@pytest.mark.parametrize("phase, iteration", [("rollout", 0), ("checkpoint", 1)])
def test_a_run_killed_elsewhere_resumes_to_the_same_weights(
    forge, reference_run, small_config, tmp_path, phase, iteration
):
    run = killed_and_resumed(forge, RunFolder.create(tmp_path, small_config()), phase, iteration)
    assert distance(weights(run), weights(reference_run)) == 0.0
    for kind in ("train", "evaluation"):
        assert told(run, kind) == told(reference_run, kind)


@one_kind
@pytest.mark.parametrize("every", [1, 1000], ids=["saved before", "not saved yet"])
def test_ctrl_c_in_an_update_keeps_the_last_complete_iteration(forge, reference_run, small_config, tmp_path, every):
    """Half an update cannot be kept: what the LoRA was before it is saved."""
    run = RunFolder.create(
        tmp_path, small_config(iterations=500, checkpoint={"every": every}, evaluation={"every": 1000})
    )
    assert forge.run(run, fault="interrupt", iteration=1) == [0], forge.errors.read_text()[-3000:]
    assert (run.status().state, run.status().iteration) == ("stopped", 1)
    newest = run.checkpoints()[-1]
    assert newest.name == "000001"
    for name in ("lora.safetensors", "ema.safetensors", "optimiser.safetensors"):
        assert files(newest)[name] == files(reference_run.checkpoints_folder / newest.name)[name]


@one_kind
def test_ctrl_c_stops_all_processes_and_keeps_every_finished_iteration(forge, small_config, tmp_path):
    run = RunFolder.create(
        tmp_path, small_config(iterations=500, checkpoint={"every": 1000}, evaluation={"every": 1000})
    )
    child = forge.start(run, processes=2)
    while run.status().iteration < 2:
        assert run.status().state != "failed"
        time.sleep(0.02)
    os.kill(child, signal.SIGINT)
    assert forge.wait() == [0, 0], forge.errors.read_text()[-3000:]
    status = run.status()
    assert status.state == "stopped"
    assert int(run.checkpoints()[-1].name) == status.iteration == rows(run, "train")[-1]["iteration"]


@one_kind
def test_a_run_that_was_stopped_before_its_first_measurement_makes_up_for_it(halfway, small_config):
    shutil.rmtree(halfway.checkpoints_folder / "000001")
    (halfway.path / "metrics.jsonl").unlink()
    (halfway.path / "evaluation" / "base.json").unlink()
    assert train(small_config(iterations=1), halfway, resume=True).state == "finished"
    assert [(row["kind"], row["iteration"]) for row in halfway.read_metrics()] == [
        ("evaluation", 0),
        ("train", 1),
        ("evaluation", 1),
    ]


@one_kind
def test_save_and_sample_are_answered_after_the_iteration(halfway, small_config):
    halfway.request("save")
    halfway.request("sample")
    train(small_config(checkpoint={"every": 100}), halfway, resume=True)
    assert (halfway.checkpoints_folder / "000001").is_dir() and len(
        list((halfway.samples_folder / "000001").iterdir())
    ) == 2
    assert not any((halfway.path / "control").iterdir())


# --- refused or failed: a clear message, and nothing lost ----------------------------------------------------------


@one_kind
def test_progress_is_told_within_the_first_iteration_with_the_time_left(small_config, tmp_path):
    config = small_config()
    run, seen = RunFolder.create(tmp_path, config, "a"), []

    def look(report):
        seen.append((report.phase, run.status().phase_done, report.iteration, report.eta_seconds))
        if report.phase == "update":
            run.request("stop")

    assert train(config, run, progress=look).state == "stopped"
    assert ("rollouts", 0.0, 0, None) in seen
    first = [row for row in seen if row[0] == "rollouts" and row[1]]
    assert len({done for _, done, _, _ in first}) == len(first) > 1
    assert all(iteration == 0 and eta > 0 for _, _, iteration, eta in first)
    assert ("evaluation", 0.0, 0, None) in seen


@one_kind
def test_a_diverging_run_fails_and_leaves_its_last_checkpoint(halfway, small_config, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    refused(small_config(), halfway, "gradient of update 3 is nan.*last checkpoint")


@one_kind
def test_a_reward_that_is_no_number_names_its_item(halfway, small_config, small_models, tmp_path):
    """Weights that are finite and whose sum is not."""
    source = Path(shutil.copytree(small_models["reward"]["source"], tmp_path / "identity_reward"))
    [head] = source.rglob("non_lora_state_dict.pth")
    tensors = torch.load(head, weights_only=True)
    [name] = [n for n in tensors if "rm_head" in n]
    tensors[name].fill_(torch.finfo(tensors[name].dtype).max)
    torch.save(tensors, head)
    refused(small_config(reward={"source": str(source)}), halfway, "item `row-[2-7]`.*(nan|inf)")


@one_kind
def test_a_full_disk_fails_the_run_and_leaves_its_last_checkpoint(forge, halfway, small_config):
    """The limit lets every file pass but the weights."""
    before = files(halfway.checkpoints_folder / "000001")
    config = halfway.config().model_copy(update={"iterations": 3})
    (halfway.path / "config.yaml").write_text(config.to_yaml())
    assert forge.run(halfway, resume=True, file_size=len(before["lora.safetensors"]) - 1) == [1]
    assert [p.name for p in halfway.checkpoints_folder.iterdir() if p.name != "000000"] == ["000001"]
    assert files(halfway.checkpoints_folder / "000001") == before
    status = halfway.status()
    assert status.state == "failed" and "the disk is full" in status.last_error


@one_kind
def test_a_run_with_checkpoints_does_not_start_again_at_zero(reference_run):
    with pytest.raises(UserError, match="continue it with `resume`"):
        train(reference_run.config(), reference_run)
    assert reference_run.status().state == "finished"


@one_kind
def test_a_run_that_ended_before_its_first_checkpoint_begins_again(reference_run, small_config, tmp_path):
    run = RunFolder.create(tmp_path, small_config(iterations=1))
    run.set_status(state="failed")
    run.append_metrics(rows(reference_run, "evaluation")[0])  # killed before its checkpoint was complete
    train(run.config(), run, resume=True)
    assert run.status().state == "finished" and "started again at iteration 0" in run.status().message
    assert [row["iteration"] for row in rows(run, "evaluation")] == [0, 1]
    assert distance(weights(run), weights(reference_run, 1)) < FLOAT_ERROR


@one_kind
def test_a_run_that_lost_its_checkpoints_is_not_begun_again_silently(halfway, small_config):
    for folder in halfway.checkpoints():
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        train(small_config(), halfway, resume=True)


def test_a_checkpoint_of_another_policy_is_refused(halfway, small_config, kind, small_models, small_phantom):
    other, source = {"vace": ("phantom", small_phantom), "phantom": ("vace", small_models["policy"])}[kind]
    config = small_config().model_copy(update={"policy": PolicyConfig(**source)})
    refused(config, halfway, f"belongs to the policy `{kind}`, this run trains `{other}`")


def test_a_lora_of_another_policy_is_no_start(reference_run, kind, small_config, small_models, small_phantom, tmp_path):
    lora = reference_run.exports_folder / f"{reference_run.id}-000002.safetensors"
    source = {"vace": small_phantom, "phantom": small_models["policy"]}[kind]
    config = small_config(start_lora=str(lora)).model_copy(update={"policy": PolicyConfig(**source)})
    run = RunFolder.create(tmp_path, config)
    with pytest.raises(UserError, match=f"trained for {kind}"):
        train(config, run)
    assert run.status().state == "failed"


@one_kind
def test_a_frozen_lora_is_part_of_the_base_policy_and_not_of_the_export(
    reference_run, small_config, small_models, tmp_path
):
    """It changes what is trained and measured from the start; a run whose frozen LoRA was changed is not resumed."""
    frozen = tmp_path / "few steps.safetensors"
    bias = {"proj_out.bias": torch.randn(64, generator=torch.Generator().manual_seed(0))}
    write_native(LoRA({}, {}, {}, bias), frozen)
    under = small_config(iterations=1, policy={**small_models["policy"], "loras": [f"{frozen}:2"]})
    run = RunFolder.create(tmp_path, under)
    assert train(under, run).state == "finished"
    exported = read_lora(run.newest().path)
    assert exported.modules.keys() == read_lora(reference_run.newest().path).modules.keys() and not exported.differences
    base, other = (r.read_measurement("base", evaluate.Measurement).rewards for r in (run, reference_run))
    assert base != other
    (one,) = json.loads(exported.metadata["frozen_loras"])
    assert (one["file"], one["strength"]) == ("few steps.safetensors", 2.0)
    write_native(LoRA({}, {}, {}, {name: value * 2 for name, value in bias.items()}), frozen)
    refused(
        under, run, r"belongs to the policy `vace with few steps.safetensors:2 \(\w+\)`, this run trains `vace with"
    )


@one_kind
def test_a_scale_that_the_policy_has_not_is_refused(small_config, tmp_path):
    """Phantom's second scale, given for VACE."""
    config = small_config(rollout={"image_guidance": 5.0})
    run = RunFolder.create(tmp_path, config)
    with pytest.raises(UserError, match="VACE has no image guidance.*remove the image scale"):
        train(config, run)
    assert run.status().state == "failed"


def test_a_checkpoint_of_another_rank_is_refused(halfway, small_config):
    refused(small_config(lora={"rank": 3}), halfway, "rank differ")


@one_kind
def test_a_checkpoint_of_another_prompt_set_is_refused(halfway, small_config, prompts, tmp_path):
    (tmp_path / "other.csv").write_text(prompts.read_text().replace("wave", "jump", 1))
    refused(small_config(prompts=str(tmp_path / "other.csv")), halfway, "another prompt set")


def zero_the_body(path: Path) -> None:
    """The header of a safetensors file stays whole, its numbers become 0."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)


DAMAGES = {
    "cut off": lambda folder: (folder / "ema.safetensors").write_bytes((folder / "ema.safetensors").read_bytes()[:-1]),
    "zeroed": lambda folder: zero_the_body(folder / "lora.safetensors"),
    "of another time": lambda folder: shutil.copy(folder.with_name("000000") / "optimiser.safetensors", folder),
    "missing file": lambda folder: (folder / "lora.safetensors").unlink(),
    "another number": lambda folder: (folder / "progress.json").write_text(
        (folder / "progress.json").read_text().replace('"iteration": 1', '"iteration": 999')
    ),
    "no JSON": lambda folder: (folder / "progress.json").write_text("{"),
    "list": lambda folder: (folder / "progress.json").write_text("[]"),
}


@one_kind
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(halfway, small_config, damage):
    """The run is stopped before the first rollout that follows."""
    damage(halfway.checkpoints_folder / "000001")

    def stop(report):
        assert (report.phase, report.iteration) == ("rollouts", 0)
        halfway.request("stop")

    assert train(small_config(), halfway, resume=True, progress=stop).state == "stopped"
    assert "checkpoint" in halfway.status().message and "Resumed from iteration 0" in halfway.status().message
    assert (halfway.checkpoints_folder / "000001.damaged").is_dir()
    assert [row["kind"] for row in halfway.read_metrics()] == ["evaluation"]


@one_kind
def test_from_the_checkpoint_before_a_damaged_one_the_same_iterations_follow(halfway, reference_run, small_config):
    DAMAGES["cut off"](halfway.checkpoints_folder / "000001")
    assert train(small_config(), halfway, resume=True).state == "finished"
    assert distance(weights(halfway), weights(reference_run)) < FLOAT_ERROR
    for kind in ("train", "evaluation"):
        assert [row["iteration"] for row in rows(halfway, kind)] == [
            row["iteration"] for row in rows(reference_run, kind)
        ]


@one_kind
def test_a_run_whose_checkpoints_are_all_damaged_says_so(halfway, small_config):
    for folder in halfway.checkpoints():
        (folder / "progress.json").write_text("{")
    with pytest.raises(UserError, match=r"no checkpoint that can be read.*000001.*000000"):
        train(small_config(), halfway, resume=True)
    assert halfway.status().state == "failed"


@one_kind
def test_what_is_not_finite_is_never_saved(halfway, small_config, monkeypatch):
    step = update.PolicyUpdate.step

    def spoiled(self, number):
        norm = step(self, number)
        next(iter(self.optimiser.state.values()))["exp_avg"].view(-1)[0] = math.nan
        return norm

    monkeypatch.setattr(update.PolicyUpdate, "step", spoiled)
    with pytest.raises(UserError, match="after iteration 2 the .* holds numbers that are not finite"):
        train(small_config(), halfway, resume=True)
    assert [p.name for p in halfway.checkpoints()] == ["000000", "000001"]


@one_kind
def test_a_run_from_a_lora_is_compared_with_the_base_policy_and_resumes_without_the_file(
    reference_run, small_config, tmp_path
):
    lora = shutil.copy(reference_run.newest().path, tmp_path / "start.safetensors")
    run = RunFolder.create(tmp_path / "runs", small_config(start_lora=str(lora), iterations=1, rollout=FEW))
    train(run.config(), run)
    base, start = (run.read_measurement(of, evaluate.Measurement) for of in ("base", 0))
    assert base.rewards == reference_run.read_measurement("base", evaluate.Measurement).rewards
    assert start.rewards == pytest.approx(reference_run.read_measurement(2, evaluate.Measurement).rewards, abs=1e-3)
    margin = sum(start.rewards) / 2 - sum(base.rewards) / 2
    assert rows(run, "evaluation")[0]["margin"] == pytest.approx(margin, abs=1e-6) != 0
    Path(lora).unlink()
    longer = run.config().model_copy(update={"iterations": 2})
    assert train(longer, run, resume=True).state == "finished"


@one_kind
def test_exports_are_pruned_but_for_the_newest_the_best_and_those_asked_for(finished, tmp_path):
    settings = {"checkpoint": {"keep": 2}, "evaluation": {"every": 2}, "rollout": FEW}
    run = finished(iterations=4, publish=str(tmp_path / "loras"), **settings)
    best = run.best().iteration
    assert {export.iteration for export in run.exports()} == {best, 3, 4}
    published = tmp_path / "loras" / run.id
    names = {export.path.with_suffix(kind).name for export in run.exports() for kind in EXPORTED}
    assert {p.name for p in published.iterdir()} == {p.name for p in run.exports_folder.glob("tiny*")} == names


@one_kind
def test_an_export_that_the_user_asked_for_is_kept(halfway, small_config):
    halfway.request("save")
    train(small_config(iterations=3, checkpoint={"keep": 1}, rollout=FEW), halfway, resume=True)
    assert {export.iteration for export in halfway.exports()} >= {1, 3}
    assert not halfway.export_path(2).exists()


@one_kind
def test_an_export_that_was_not_published_is_published_at_the_next_start(halfway, small_config, tmp_path):
    config = small_config(publish=str(tmp_path / "loras"), iterations=1)  # nothing is left to train
    missing = halfway.export_path(1)
    assert missing.is_file()
    train(config, halfway, resume=True)
    assert (tmp_path / "loras" / halfway.id / missing.name).is_file()


@one_kind
def test_a_run_deleted_while_it_trains_ends_and_leaves_nothing(small_config, tmp_path):
    run = RunFolder.create(tmp_path, small_config())

    def delete(report):
        if report.phase == "update":
            shutil.rmtree(run.path, ignore_errors=True)

    with pytest.raises(UserError, match="was deleted"):
        train(run.config(), run, progress=delete)
    assert not run.path.exists()
