"""Starting runs from a graph, and showing them. One small run is trained; the others are folders without a trainer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

TRAIN, RUN, ITEM = "IdentityGRPOTrain", "IdentityGRPORun", "IdentityGRPOPromptItem"
# The settings of the workflow's test: the second of the two to run finds the run of the first.
TINY = {"iterations": 1, "groups_per_update": 2, "evaluate_every": 4, "name": "tiny"}
EVALUATION = {"kind": "evaluation", "reward_mean": 1.0, "win_low": 0.5, "win_high": 1.0}


def ours(name: str):
    return import_module(f"identity_grpo.{name}")


@pytest.fixture(scope="module")
def parts(run_node) -> dict:
    """The linked inputs of Train: TinyWorld."""
    return {
        "policy": run_node("IdentityGRPOLoadModel")[0],
        "reward": run_node("IdentityGRPOLoadReward")[0],
        "prompt_set": run_node("IdentityGRPOPromptSet", file="TinyWorld: training (built in)")[0],
    }


@pytest.fixture(scope="module")
def finished(run_node, parts, two_held_out):
    """A run of one iteration that has reached its end."""
    (run,) = run_node(TRAIN, **parts, **TINY)
    run_node(RUN, training_run=run, wait="for the end")
    return run


@pytest.fixture
def root(pack, tmp_path, monkeypatch) -> Path:
    """The folder of this ComfyUI's runs, empty."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name="system": str(tmp_path / f"__{name}"))
    return tmp_path / "__identity_grpo" / "runs"


@pytest.fixture
def make(root):
    """`make(state, exports, **status)`: a run in that state with LoRAs of these iterations; this process is its own."""

    def make(state: str, exports=(), **status):
        folder, config = ours("trainers.runs.folder"), ours("trainers.config")
        run = folder.RunFolder.create(root, config.make_config("tiny", {"iterations": 7}), "a run")
        run.set_status(state="running")  # signed with this process: it is alive
        run.set_status(state=state, **status)
        export(run, *exports)
        return run

    return make


def export(run, *iterations: int) -> None:
    for iteration in iterations:
        run.export_path(iteration).touch()


@pytest.fixture
def meanwhile(pack, monkeypatch):
    """`meanwhile(*acts)`: what happens to a run between the checks of a Run node that waits."""
    status = ours("nodes.run_status")

    def plan(*acts):
        left = list(acts)
        monkeypatch.setattr(status.time, "sleep", lambda _: left.pop(0)())
        return left

    return plan


@pytest.fixture
def started(pack, monkeypatch) -> list:
    """The runs that were started, without a process: they finish at once."""
    launcher, runs = ours("trainers.runs.launcher"), []

    def start(run, **_):
        runs.append(run)
        run.set_status(state="finished", iteration=run.config().iterations)
        (run.checkpoints_folder / "000001").mkdir()
        (run.checkpoints_folder / "000001" / "progress.json").touch()

    monkeypatch.setattr(launcher, "start", start)
    return runs


# --- Train -----------------------------------------------------------------------------------------------------------


def test_a_run_reaches_its_end_and_its_lora_lies_among_comfyuis(finished):
    import folder_paths

    assert finished.status().state == "finished"
    published = Path(folder_paths.get_folder_paths("loras")[0]) / "identity_grpo" / finished.id
    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in (published, finished.exports_folder)]
    assert names[0] == names[1] != []


def test_the_same_settings_show_the_run_and_start_no_second_one(node_output, parts, finished):
    before = list(finished.path.parent.iterdir())
    again = node_output(TRAIN, **parts, **TINY)
    assert again.args[0].id == finished.id and list(finished.path.parent.iterdir()) == before
    assert "these settings have a run already" in again.ui["text"][0]


def test_starting_a_run_loads_no_model_here(run_node, parts, finished):
    fresh = {"policy": run_node("IdentityGRPOLoadModel")[0], "reward": run_node("IdentityGRPOLoadReward")[0]}
    run_node(TRAIN, **parts | fresh, **TINY)
    assert not any("value" in vars(part.model) for part in fresh.values())


def test_a_run_that_starts_from_another_is_one_run_however_often_it_is_queued(run_node, parts, finished, started):
    settings = TINY | {"name": "further", "start_lora": f"{finished.id}: latest"}
    (run,) = run_node(TRAIN, **parts, **settings)
    (again,) = run_node(TRAIN, **parts, **settings)
    assert started == [run] and run.id == again.id != finished.id
    assert Path(run.config().start_lora).parent == finished.exports_folder
    shutil.rmtree(run.path)


def test_a_second_run_on_the_device_waits_in_the_queue_if_asked(run_node, node_output, parts, make):
    running, settings = make("running"), TINY | {"seed": 6, "when_busy": "wait in the queue"}
    with ours("trainers.runs.devices").hold_device("cpu", running.path):
        (run,) = run_node(TRAIN, **parts, **settings)
        again = node_output(TRAIN, **parts, **settings)
        state = ours("trainers.runs.launcher").stop(run, wait=60)
    assert again.args[0].id == run.id and again.ui["state"] == ("queued",)
    assert state == "stopped" and run.training() == []


def test_a_second_run_on_the_device_is_refused_and_leaves_nothing(run_node, pack, parts, make):
    running = make("running")
    with (
        ours("trainers.runs.devices").hold_device("cpu", running.path),
        pytest.raises(pack.UserError, match=f"{running.id}.*choose another device"),
    ):
        run_node(TRAIN, **parts, **TINY, seed=5)
    assert [p for p in running.path.parent.iterdir() if p.name != "prompt_sets"] == [running.path]


def test_the_fingerprint_of_train_is_a_new_one_after_every_deletion(pack, make):
    """Also when the same runs are there as at an earlier queue, whose cached output may be the deleted run."""
    node, found = pack.nodes[TRAIN], []
    make("finished")
    for _ in range(3):
        found.append(node.fingerprint_inputs())
        run = make("finished")
        assert node.fingerprint_inputs() == found[-1]
        shutil.rmtree(run.path)
    assert len(set(found)) == 3


def test_a_run_that_was_deleted_before_the_next_queue_changes_the_fingerprint(pack, run_node, parts, root, started):
    node = pack.nodes[TRAIN]
    before = node.fingerprint_inputs()
    (run,) = run_node(TRAIN, **parts, **TINY, seed=8)
    assert node.fingerprint_inputs() == before
    (again,) = run_node(TRAIN, **parts, **TINY, seed=8)
    assert again.id == run.id and started == [run]
    ours("trainers.runs.trash").delete(run)
    assert node.fingerprint_inputs() != before


@pytest.mark.parametrize(
    ("wrong", "name", "text"),
    [
        ({"frames": 80}, "frames", "frames 80 is not 4n+1 from 1 to 1025; use 81"),
        ({"frames": -3}, "frames", "use 1"),
        ({"width": 100000, "height": 48}, "width", "bigger than max of 4096"),
        ({"devices": "GPU 77"}, "devices", "not in list"),
        ({"preset": "slow"}, "preset", "not in list"),
        ({"start_lora": "gone.safetensors"}, "start_lora", "not in list"),
        ({"iterations": -1}, "iterations", "smaller than min of 1"),
    ],
)
def test_a_wrong_value_is_one_error_on_its_input(run_node, pack, parts, wrong, name, text):
    with pytest.raises(pack.Refused) as refused:
        run_node(TRAIN, **parts, **wrong)
    ((found, problem),) = refused.value.problems
    assert found == name and text in problem


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"width": 80}, "give both width and height"),
        ({"width": 100, "height": 48}, "width 100 is not a multiple of 16 from 16 to 4096; use 96"),
        ({"frames": 80}, r"frames 80 is not 4n\+1"),
        ({"devices": "GPU 77"}, "devices `GPU 77` is not offered here; choose auto"),
        ({"preset": "slow"}, "preset `slow` is not offered here"),
        ({"start_lora": "../gone.safetensors"}, "there is no LoRA `../gone.safetensors`"),
    ],
)
def test_a_wrong_value_from_a_link_is_refused_before_a_run_is_made(run_node, pack, parts, root, wrong, text):
    linked = {name: pack.Linked(value) for name, value in wrong.items()}
    with pytest.raises(pack.UserError, match=text):
        run_node(TRAIN, **parts, **linked)
    assert not root.exists()


def test_values_equal_to_the_presets_are_the_presets_settings(run_node, parts, started):
    """As the editor fills them in, and left out as in a graph from elsewhere: the same run."""
    presets = ours("nodes.run_settings").preset_values()
    settings = {"preset": "tiny", "seed": 11}
    (run,) = run_node(TRAIN, **parts, **settings)
    (filled,) = run_node(TRAIN, **parts, **settings | presets["tiny"])
    assert filled.id == run.id and started == [run]
    shutil.rmtree(run.path)


def test_a_value_of_zero_is_refused(run_node, pack, parts):
    with pytest.raises(pack.Refused, match="smaller than min") as refused:
        run_node(TRAIN, **parts, learning_rate=0.0)
    assert [name for name, _ in refused.value.problems] == ["learning_rate"]


@pytest.mark.parametrize(
    ("choice", "exports", "active", "moment", "held"),
    [
        ("no", [], True, None, False),
        ("at the first LoRA", [], True, "at the first LoRA", True),
        ("at the first LoRA", [0], True, "at the first LoRA", True),
        ("at the first LoRA", [0, 1], True, None, False),
        ("at the end", [0, 1], True, "at the end", True),
        ("at both", [0], True, "at the first LoRA", True),
        ("at both", [0, 1], True, "at the end", False),
        ("at both", [0, 1], False, None, False),
        ("at the first LoRA", [0], False, None, False),
    ],
)
def test_what_is_held_back_until_the_editor_queues_again(node_output, make, choice, exports, active, moment, held):
    run = make("running" if active else "finished", exports)
    result = node_output(RUN, training_run=run, queue_again=choice)
    assert result.ui.get("queue_again") == ((moment,) if moment else None)
    assert [isinstance(value, str) for value in result.args[:2]] == [not held] * 2
    assert ("the queue is free" in result.args[4]) == held


def test_the_lora_of_a_run_that_trains_is_nothing_to_start_from(run_node, pack, parts, make):
    run = make("running", exports=[3])
    for choice in (f"{run.id}: latest", "newest run: best"):
        with pytest.raises(pack.UserError, match="still changes"):
            run_node(TRAIN, **parts, **TINY, start_lora=pack.Linked(choice))


def test_a_lora_of_the_policy_is_a_frozen_part_of_what_is_trained(pack, parts, make, tmp_path):
    settings, file = ours("nodes.run_settings"), ours("nodes.folders").LoraFile(tmp_path / "few steps.safetensors", "x")
    acting = replace(parts["policy"], loras=((file, 0.5), (file, 0.0)))
    found = settings.model_settings(acting, parts["reward"], on_gpu=False)
    assert found["policy"]["loras"] == [f"{tmp_path}/few steps.safetensors:0.5"]
    run = make("running", exports=[3])
    changing = replace(acting, loras=((ours("nodes.folders").find_lora(f"{run.id}: latest"), 1.0),))
    with pytest.raises(pack.UserError, match="the policy's LoRA `.*` still changes"):
        settings.model_settings(changing, parts["reward"], on_gpu=False)


def test_tinyworlds_recipe_is_refused_for_another_model(run_node, pack, parts):
    real = replace(parts["policy"], config=parts["policy"].config.model_copy(update={"source": "diffusers/wan"}))
    with pytest.raises(pack.UserError, match="choose `fast` or `paper`"):
        run_node(TRAIN, **parts | {"policy": real}, preset="tiny")


def test_a_phantom_model_gets_the_recipe_of_its_kind(parts, run_node):
    preset_of = ours("nodes.run_settings").preset_of
    (phantom,) = run_node("IdentityGRPOLoadModel", model="TinyWorld Phantom (built in)")
    assert [preset_of(choice, phantom) for choice in ("auto", "fast", "paper")] == [
        "tiny-phantom",
        "fast-phantom",
        "paper-phantom",
    ]
    assert preset_of("auto", parts["policy"]) == "tiny"


@pytest.mark.parametrize(
    ("choice", "own", "count", "taken"),
    [
        ("auto", "cuda:0", 3, [1, 2]),
        ("auto", "cuda:1", 2, [0]),
        ("auto", "cuda:0", 1, [0]),
        ("auto", "cpu", 2, [0, 1]),
        ("auto", "cpu", 0, []),
        ("all GPUs", "cuda:0", 2, [0, 1]),
        ("all GPUs, the last for the rewards", "cuda:0", 3, [0, 1, 2]),
        ("GPU 1", "cuda:0", 2, [1]),
        ("CPU", "cuda:0", 2, []),
    ],
)
def test_auto_is_every_gpu_but_comfyuis_or_the_only_one(pack, monkeypatch, choice, own, count, taken):
    settings = ours("nodes.run_settings")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(settings.management, "get_torch_device", lambda: torch.device(own))
    assert choice in settings.device_choices()
    assert settings.chosen_gpus(choice) == taken


def test_the_last_gpu_is_for_the_rewards_if_chosen(pack, parts):
    settings = ours("nodes.run_settings")
    assert settings.model_settings(parts["policy"], parts["reward"], True, own=True)["reward"]["device"] == "own"
    assert "device" not in settings.model_settings(parts["policy"], parts["reward"], True)["reward"]


# --- several machines ------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(root):
    """`launch(text, machines, devices)`: what a file of the folder `machines` with this text starts here."""

    def launch(text: str, choice: str = "two.yaml", devices: str = "auto"):
        folder = root.parent / "machines"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "two.yaml").write_text(text)
        return ours("nodes.run_settings").chosen_launch(choice, devices)

    return launch


TWO = "num_machines: 2\nnum_processes: 4\nmain_process_ip: head\nmain_process_port: 29500\n"


def test_files_for_several_machines_are_listed(launch, root):
    launch(TWO)
    (root.parent / "machines" / "notes.txt").write_text("")
    assert ours("nodes.folders").machine_choices() == ["this machine", "two.yaml"]


@pytest.mark.parametrize(
    ("extra", "count", "gpus"), [("", 3, (0, 1)), ("gpu_ids: 2,0", 3, (2, 0)), ("use_cpu: true", 3, ()), ("", 0, ())]
)
def test_a_file_says_which_processes_start_on_which_gpus(launch, monkeypatch, extra, count, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found = launch(TWO + extra)
    assert (found.processes, found.machines.count, found.machines.rendezvous) == (2, 2, "head:29500")
    assert found.gpus == gpus


@pytest.mark.parametrize(
    ("text", "choice", "devices", "count", "problem"),
    [
        (TWO, "../two.yaml", "auto", 0, r"no file `\.\./two\.yaml` in .*machines; put one there"),
        (TWO, "two.yaml", "CPU", 0, "devices `CPU`: `two.yaml` says where the run trains; set devices to `auto`"),
        (TWO, "two.yaml", "auto", 1, r"takes 2 GPUs of this machine \(0\), and it has 1"),
        (TWO + "gpu_ids: 0,7", "two.yaml", "auto", 2, r"takes 2 GPUs of this machine \(0, 7\), and it has 2"),
        (TWO + "machine_rank: 1", "two.yaml", "auto", 0, "has machine_rank 1, and ComfyUI runs on machine 0"),
        (TWO + "fsdp_config: {a: 1}", "two.yaml", "auto", 0, r"two\.yaml: `fsdp_config` is not supported; remove it"),
    ],
)
def test_a_file_that_cannot_be_used_here_is_refused(pack, launch, monkeypatch, text, choice, devices, count, problem):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(pack.UserError, match=problem):
        launch(text, choice, devices)


# --- the prompt sets of Train ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(run_node):
    """`rows(count, seed)`: a prompt set of the graph with different rows."""

    def rows(count: int, seed: int = 0):
        found = None
        for number in range(count):
            picture = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(100 * seed + number))
            given = {"references": {"ref0": picture}, "prompt": f"person {number} waves"}
            (found,) = run_node(ITEM, **given, **({"prompt_set": found} if found else {}))
        return found

    return rows


@pytest.mark.parametrize(
    ("count", "evaluation", "text"),
    [
        (1, 0, r"has 1 row, 1 of them held out .* needs 16 .* Give it 17 rows or connect an `evaluation_set`"),
        (16, 0, r"has 16 rows, 1 of them held out .* Give it 17 rows, connect .* or set `groups_per_update` to 15 "),
        (3, 1, r"has 3 rows, but an update needs 16 .*\. Give it 16 rows or set `groups_per_update` to 3 \(below 16"),
    ],
)
def test_too_few_rows_are_counted_before_a_run_is_made(run_node, pack, parts, rows, root, count, evaluation, text):
    sets = {"prompt_set": rows(count)} | ({"evaluation_set": rows(evaluation, 1)} if evaluation else {})
    with pytest.raises(pack.UserError, match=text) as error:
        run_node(TRAIN, **parts | sets)
    assert "held_out" not in str(error.value) and str(root) not in str(error.value) and not root.exists()


def test_as_many_rows_as_the_message_asks_for_are_enough(run_node, parts, rows, root, started):
    (run,) = run_node(TRAIN, **parts | {"prompt_set": rows(17)})
    assert run.config().held_out == 1 and started == [run]


def test_a_row_in_both_sets_is_refused_with_its_name(run_node, pack, parts, rows, root):
    sets = {"prompt_set": rows(16), "evaluation_set": rows(1)}
    with pytest.raises(pack.UserError, match="row `item-1` of `evaluation_set` is also in `prompt_set`") as error:
        run_node(TRAIN, **parts | sets)
    assert str(root) not in str(error.value)


def test_a_row_that_would_be_trained_and_held_out_is_refused(run_node, pack, parts, rows, root):
    twice = rows(17)
    twice = type(twice)((*twice.items, replace(twice[0], id="again")), "the graph")
    with pytest.raises(pack.UserError, match="row `again` of `prompt_set` is there twice"):
        run_node(TRAIN, **parts | {"prompt_set": twice})


def test_more_groups_than_tinyworld_has_prompts_are_refused(run_node, pack, parts, root):
    with pytest.raises(pack.UserError, match="TinyWorld has 512 training prompts; set `groups_per_update` to 512"):
        run_node(TRAIN, **parts, groups_per_update=513)
    assert not root.exists()


def test_tinyworlds_sets_are_not_taken_for_each_other(run_node, pack, parts):
    (held_out, *_) = run_node("IdentityGRPOPromptSet", file="TinyWorld: held out (built in)")
    for swapped in ({"prompt_set": held_out}, {"evaluation_set": parts["prompt_set"]}):
        with pytest.raises(pack.UserError, match=f"`{next(iter(swapped))}` is TinyWorld's other set"):
            run_node(TRAIN, **parts | swapped)


# --- Training Run ----------------------------------------------------------------------------------------------------


def test_its_outputs_are_choices_of_load_lora_and_pictures(run_node, parts, finished):
    latest, best, curve, clips, status = run_node(RUN, training_run=finished)
    assert "finished, iteration 1 of 1" in status
    for choice in (latest, best):
        (policy,) = run_node("IdentityGRPOLoadLoRA", policy=parts["policy"], lora=choice)
        assert policy.loras[-1][0].path.parent == finished.exports_folder
    assert curve.shape[1] > 200 and clips.shape[0] == 9


def test_a_run_is_chosen_without_a_link(run_node, finished):
    latest, *_ = run_node(RUN, run=finished.id)
    assert latest == f"{finished.id}: latest"


def test_a_linked_run_is_shown_whatever_the_widget_holds(run_node, pack, finished):
    *_, status = run_node(RUN, run="deleted-20200101-000000-abcd", training_run=pack.Linked(finished))
    assert status.startswith(finished.id)


@pytest.mark.parametrize("wrong", [{"run": "../../etc"}, {"wait": "for ever"}])
def test_a_run_that_is_not_there_is_one_error_on_its_input(run_node, pack, finished, wrong):
    with pytest.raises(pack.Refused) as refused:
        run_node(RUN, **wrong)
    assert [name for name, _ in refused.value.problems] == list(wrong)


def test_the_history_holds_numbers_beside_the_text(node_output, make):
    run = make("stopped", exports=[0, 2, 4], iteration=4)
    before = node_output(RUN, training_run=run).ui
    for iteration, margin, win in ((0, 0.0, 0.5), (2, 0.75, 0.8), (4, 0.5, 0.7)):
        run.append_metrics({**EVALUATION, "iteration": iteration, "margin": margin, "win": win})
    after = json.loads(json.dumps(node_output(RUN, training_run=run).ui))
    names = ("state", "iteration", "iterations", "evaluated_iteration", "reward_margin", "win_rate")
    assert [before[name] for name in names] == [("stopped",), (4,), (7,), (None,), (None,), (None,)]
    assert [after[name] for name in names] == [["stopped"], [4], [7], [4], [0.5], [0.7]]
    assert after["identity_grpo_run"] == [run.id] and after["warning"] == []


def test_train_gives_the_same_numbers(node_output, parts, root, started):
    shown = node_output(TRAIN, **parts, **TINY).ui
    assert (shown["state"], shown["iteration"], shown["iterations"]) == (("finished",), (1,), (1,))


@pytest.mark.parametrize(
    ("exports", "best", "warning"),
    [
        ([], 0, None),
        ([0], 0, "`latest` and `best` are iteration 0, the base model: nothing is trained yet"),
        ([0, 2], 0, "`best` is iteration 0, the base model: no evaluation since then is better"),
        ([0, 2], 2, None),
    ],
)
def test_a_lora_of_iteration_0_is_shown_with_a_warning(node_output, make, exports, best, warning):
    run = make("stopped", exports=exports)
    for iteration in exports:
        numbers = {"margin": float(iteration == best), "win": 0.5}
        run.append_metrics({**EVALUATION, "iteration": iteration, **numbers})
    shown = node_output(RUN, training_run=run)
    assert shown.ui["warning"] == ((warning,) if warning else ())
    assert (f"Warning: {warning}" in shown.args[-1]) is bool(warning)


def test_a_run_that_started_from_a_lora_warns_of_that_one(node_output, make, tmp_path):
    run = make("stopped", exports=[0])
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("start_lora: null", f"start_lora: {tmp_path / 'first.safetensors'}"))
    assert "the LoRA that the run started from" in node_output(RUN, training_run=run).ui["warning"][0]


def test_its_fingerprint_follows_every_run(pack, make):
    node, run = pack.nodes[RUN], make("running")
    before = node.fingerprint_inputs(run="newest run", training_run=None, wait="no")
    run.set_status(message="something new")
    assert node.fingerprint_inputs(run="newest run", training_run=None, wait="no") != before


def test_a_damaged_run_hides_no_other(run_node, pack, make):
    damaged, good = make("running"), make("stopped")
    (damaged.path / "status.json").write_text("{}")
    assert "damaged" in run_node(RUN, run=damaged.id)[-1] and "stopped" in run_node(RUN, run=good.id)[-1]
    assert good.id in pack.nodes[RUN].fingerprint_inputs()


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_it_waits_for_the_end(run_node, make, meanwhile):
    run = make("running", exports=[0])
    left = meanwhile(lambda: export(run, 1), lambda: run.set_status(state="finished", iteration=7))
    assert "finished" in run_node(RUN, training_run=run, wait="for the end")[-1] and not left


def test_it_waits_for_the_first_lora_that_is_trained(run_node, make, meanwhile):
    run = make("running")
    left = meanwhile(lambda: export(run, 0), lambda: export(run, 1))
    assert "running" in run_node(RUN, training_run=run, wait="for the first LoRA")[-1] and not left


@pytest.mark.parametrize("exports", [[], [0], [0, 1]])
def test_a_stop_while_it_waits_is_an_interruption(run_node, make, meanwhile, exports):
    import comfy.model_management as management

    run = make("running", exports=exports)
    meanwhile(lambda: run.request("stop"), lambda: run.set_status(state="stopped"))
    with pytest.raises(management.InterruptProcessingException):
        run_node(RUN, training_run=run, wait="for the end")


def test_a_stopped_run_is_not_waited_for(run_node, pack, make):
    assert "stopped" in run_node(RUN, training_run=make("stopped", exports=[0, 1]), wait="for the end")[-1]
    with pytest.raises(pack.UserError, match="stopped.*it has no LoRA: resume it, or choose another run"):
        run_node(RUN, training_run=make("stopped", exports=[0]), wait="for the end")


def test_cancel_ends_the_waiting_and_not_the_run(run_node, make, meanwhile):
    import comfy.model_management as management

    run = make("running")
    meanwhile(management.interrupt_current_processing)
    with pytest.raises(management.InterruptProcessingException):
        run_node(RUN, training_run=run, wait="for the end")
    assert run.status().state == "running"


@pytest.mark.parametrize("wait", ["for the first LoRA", "for the end"])
def test_a_run_that_fails_while_it_waits_is_an_error_with_the_reason(run_node, pack, make, meanwhile, wait):
    run = make("running", exports=[0])
    meanwhile(lambda: run.set_status(state="failed", last_error="NaN in the reward of item 3"))
    with pytest.raises(pack.UserError, match="failed, iteration 0 of 7; NaN in the reward of item 3"):
        run_node(RUN, training_run=run, wait=wait)
    assert "NaN in the reward of item 3" in run_node(RUN, training_run=run)[-1]
