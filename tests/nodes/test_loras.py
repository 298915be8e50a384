"""LoRAs applied to policies and written into files, through the nodes."""

from __future__ import annotations

import json
import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "lora"
LOAD, SAVE = "IdentityGRPOLoadLoRA", "IdentityGRPOSaveLoRA"
COMFYUI, PEFT, DIFFUSERS = "ComfyUI (one file)", "PEFT (folder)", "diffusers (folder)"


def ours(name: str):
    return import_module(f"identity_grpo.{name}")


@pytest.fixture(scope="module")
def policy(pack):
    """TinyWorld's VACE as Load Model gives it."""
    options = {"dtype": "float32", "attention": "sdpa", "offload": "when memory is needed"}
    with torch.inference_mode():
        loaded = pack.nodes["IdentityGRPOLoadModel"].execute(
            model="TinyWorld VACE (built in)", text_encoder="beside the model", vae="beside the model", **options
        )
    return loaded.args[0]


@pytest.fixture(scope="module")
def loras(pack) -> Path:
    """ComfyUI's folder of LoRAs."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def write(policy, loras):
    """Writes a LoRA that fits the policy, as a run would."""
    inject, formats = ours("trainers.lora.inject"), ours("trainers.lora.formats")
    transformer = policy.policy.transformer
    inject.add_lora(transformer, 2, 4.0, seed=0)
    lora = inject.to_lora(transformer)
    inject.remove_lora(transformer)

    def to(path: str | Path, **metadata) -> Path:
        path = loras / path
        formats.write_native(lora, path, metadata)
        return path

    return to


@pytest.fixture
def run(pack, write):
    """A run's id, and a function that gives it another export."""
    folders = ours("nodes.folders")
    path = folders.runs_root() / "run-20260101-000000-abcd"
    (path / "exports").mkdir(parents=True)
    (path / "config.yaml").touch()

    def export(n: int) -> None:
        write(path / "exports" / f"{path.name}-{n:06d}.safetensors", run=path.name, iteration=str(n), policy="vace")

    export(8)
    yield path.name, export
    shutil.rmtree(path)


def text(output) -> str:
    shown = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
    return shown["text"][0]


# --- on a policy ------------------------------------------------------------------------------------------------------


def test_the_model_is_shared_and_not_loaded_again(run_node, policy, write):
    write("a.safetensors")
    (acting,) = run_node(LOAD, policy=policy, lora="a.safetensors", strength=0.5)
    assert acting.policy is policy.policy and acting.managed is policy.managed
    assert [(file.path.name, strength) for file, strength in acting.loras] == [("a.safetensors", 0.5)]
    assert not policy.loras


def test_the_built_in_lora_of_few_steps_is_offered_and_fits(node_output, policy):
    choice = "TinyWorld VACE, 4 steps (built in)"
    assert choice in ours("nodes.folders").lora_choices(built_in=True)
    assert choice in text(node_output(LOAD, policy=policy, lora=choice))


def test_a_second_lora_acts_beside_the_first(node_output, run_node, policy, write):
    write("a.safetensors")
    write("b.safetensors", run="run-x", iteration="4")
    (first,) = run_node(LOAD, policy=policy, lora="a.safetensors", strength=0.5)
    second = node_output(LOAD, policy=first, lora="b.safetensors", strength=1.0)
    acting = [(file.path.name, strength) for file, strength in second.args[0].loras]
    assert acting == [("a.safetensors", 0.5), ("b.safetensors", 1.0)]
    assert text(second) == "run run-x, iteration 4, at strength 1; with a.safetensors at 0.5"


def test_a_new_checkpoint_is_used_and_shown(node_output, pack, policy, run):
    name, export = run
    follow = {"policy": policy, "lora": f"{name}: latest", "strength": 1.0}
    first, before = node_output(LOAD, **follow), pack.nodes[LOAD].fingerprint_inputs(**follow)
    assert pack.nodes[LOAD].fingerprint_inputs(**follow) == before
    export(16)
    second = node_output(LOAD, **follow)
    assert pack.nodes[LOAD].fingerprint_inputs(**follow) != before
    assert [text(first), text(second)] == [f"run {name}, iteration {n}, at strength 1" for n in (8, 16)]
    assert (second.ui["run"], second.ui["iteration"]) == ((name,), (16,))
    assert second.args[0].policy is policy.policy


def test_a_linked_choice_is_used_as_a_widgets_value(node_output, pack, policy, run):
    linked = pack.Linked(f"{run[0]}: best")
    assert "iteration 8" in text(node_output(LOAD, policy=policy, lora=linked, strength=1.0))


def test_a_renamed_export_is_shown_with_its_run(node_output, policy, write):
    write("mine.safetensors", run="run-x", iteration="40", policy="vace")
    assert (
        text(node_output(LOAD, policy=policy, lora="mine.safetensors", strength=0.25))
        == "run run-x, iteration 40, at strength 0.25"
    )


def test_a_file_without_a_run_is_shown_by_its_name(node_output, policy, write):
    write("epoch-000010.safetensors")
    assert (
        text(node_output(LOAD, policy=policy, lora="epoch-000010.safetensors"))
        == "epoch-000010.safetensors, at strength 1\nFile: LoRA for VACE, rank 2, 56 layers, F32, original names"
    )


@pytest.mark.parametrize("iteration", ["", "eight", "-1", "9" * 5000])
def test_an_iteration_that_is_no_number_is_not_shown(node_output, policy, write, iteration):
    write("odd.safetensors", run="run-x", iteration=iteration)
    name, *file = text(node_output(LOAD, policy=policy, lora="odd.safetensors")).splitlines()
    assert name == "odd.safetensors, at strength 1" and not any("iteration" in line for line in file)


@pytest.mark.parametrize("node", [LOAD, SAVE, "IdentityGRPOApplyLoRA"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.safetensors", b"half a download", "cannot read"),
        (
            "foreign.safetensors",
            {"double_blocks.0.q.lora_A.weight": (2, 3), "double_blocks.0.q.lora_B.weight": (3, 2)},
            "no LoRA for Wan",
        ),
        ("checkpoint.safetensors", {"blocks.0.self_attn.q.weight": (3, 3)}, "no LoRA for Wan"),
        ("gone.safetensors", None, "models/loras"),
    ],
)
def test_a_wrong_file_is_refused_before_it_is_queued(pack, run_node, policy, loras, node, name, content, words):
    if isinstance(content, bytes):
        (loras / name).write_bytes(content)
    elif content:
        save_file({key: torch.ones(shape) for key, shape in content.items()}, loras / name)
    given = {LOAD: {"policy": policy}, SAVE: {}}.get(node, {"model": None})
    with pytest.raises(pack.Refused, match=words) as refusal:
        run_node(node, lora=name, **given)
    ((guilty, problem),) = refusal.value.problems
    assert guilty == "lora" and "UserError" not in problem


@pytest.mark.parametrize("node", [LOAD, SAVE, "IdentityGRPOApplyLoRA"])
def test_a_file_is_checked_by_its_header_and_again_when_it_changes(pack, loras, monkeypatch, node):
    reading = ours("trainers.lora.reading")
    path, opened = loras / f"large-{node}.safetensors", []
    shutil.copy(GOLDEN / "comfy_native.safetensors", path)
    real = reading.read_lora_header
    monkeypatch.setattr(ours("nodes.loras"), "read_lora_header", lambda p: (opened.append(p), real(p))[1])
    monkeypatch.setattr(ours("nodes.loras"), "read_lora", lambda p: pytest.fail("read whole to validate a graph"))
    for _ in range(3):
        assert pack.nodes[node].validate_inputs(lora=path.name) is True
    assert opened == [path]
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot read" in pack.nodes[node].validate_inputs(lora=path.name)
    assert opened == [path, path]


@pytest.mark.pipes
@pytest.mark.parametrize("node", [LOAD, SAVE, "IdentityGRPOApplyLoRA"])
def test_a_named_pipe_is_refused_and_not_waited_for(pack, loras, node):
    folder = loras / f"pipe-{node}"
    folder.mkdir()
    shutil.copy(GOLDEN / "peft" / "adapter_model.safetensors", folder)
    os.mkfifo(folder / "adapter_config.json")
    assert "not a regular file" in pack.nodes[node].validate_inputs(lora=f"{folder.name}/")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(run_node, pack, policy, write, strength):
    write("a.safetensors")
    with pytest.raises((ours("trainers.errors").UserError, pack.Refused), match="not a finite number|bigger"):
        run_node(LOAD, policy=policy, lora="a.safetensors", strength=strength)


@pytest.mark.parametrize("which", ["latest", "best"])
@pytest.mark.parametrize("node", [LOAD, SAVE])
def test_iteration_0_is_shown_as_the_base_model(node_output, policy, run, caplog, node, which):
    name, export = run
    for path in (ours("nodes.folders").runs_root() / name / "exports").iterdir():
        path.unlink()
    export(0)
    shown = node_output(node, lora=f"{name}: {which}", **({"policy": policy} if node == LOAD else {}))
    expected = f"run {name}, iteration 0: the base model, nothing is trained yet"
    assert expected in text(shown)
    assert expected in caplog.text
    assert shown.ui["iteration"] == (0,)


def test_iteration_0_of_a_run_with_a_start_lora_is_shown_as_that(node_output, policy, loras):
    formats, inject = ours("trainers.lora.formats"), ours("trainers.lora.inject")
    transformer = policy.policy.transformer
    inject.add_lora(transformer, 2, 4.0, seed=0)
    started = inject.to_lora(transformer)
    inject.remove_lora(transformer)
    modules = {name: (down, torch.ones_like(up)) for name, (down, up) in started.modules.items()}
    lora = formats.LoRA(modules, started.alpha, {"run": "run-x", "iteration": "0", "policy": "vace"})
    formats.write_native(lora, loras / "start.safetensors")
    shown = text(node_output(LOAD, policy=policy, lora="start.safetensors", strength=1.0))
    assert shown == "run run-x, iteration 0: the start LoRA, nothing is trained yet, at strength 1"


def test_a_lora_of_another_size_is_refused_with_the_module(pack, run_node, policy, loras):
    shutil.copy(GOLDEN / "comfy_native.safetensors", loras / "golden.safetensors")
    with pytest.raises(ours("trainers.errors").UserError, match=r"blocks\.0.* another size"):
        run_node(LOAD, policy=policy, lora="golden.safetensors")


def test_a_lora_of_the_other_kind_is_refused(run_node, policy, write):
    write("phantom.safetensors", policy="phantom")
    with pytest.raises(ours("trainers.errors").UserError, match="trained for phantom"):
        run_node(LOAD, policy=policy, lora="phantom.safetensors")


# --- into files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(run_node, loras):
    """Saves the golden adapter, given as a PEFT folder, and gives what has appeared in the output folder."""
    import folder_paths

    output = Path(folder_paths.get_output_directory())
    shutil.copytree(GOLDEN / "peft", loras / "golden", dirs_exist_ok=True)

    def save(format: str, prefix: str) -> list[Path]:
        before = set(output.rglob("*"))
        run_node(SAVE, lora="golden/", format=format, filename_prefix=prefix)
        return sorted(p.relative_to(output) for p in set(output.rglob("*")) - before if p.is_file())

    save.output = output
    return save


def test_comfyuis_form_is_the_golden_one(saved):
    (file,) = saved(COMFYUI, "loras/golden")
    found, expected = load_file(saved.output / file), load_file(GOLDEN / "comfy_native.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_pefts_form_keeps_every_rank_and_alpha(saved):
    config, weights = saved(PEFT, "peft/golden")
    assert (config.name, weights.name) == ("adapter_config.json", "adapter_model.safetensors")
    found, given = (json.loads(f.read_text()) for f in (saved.output / config, GOLDEN / "peft" / config.name))
    assert (found["r"], found["lora_alpha"]) == (given["r"], given["lora_alpha"])
    tensors, expected = load_file(saved.output / weights), load_file(GOLDEN / "peft" / weights.name)
    # The same factors once more, under the keys that diffusers' pipelines read.
    copies = {k.replace("base_model.model.", "transformer."): v for k, v in expected.items()}
    assert tensors.keys() == expected.keys() | copies.keys()
    assert all(torch.equal(tensors[k], value) for k, value in (expected | copies).items())


def test_diffusers_form_is_one_file_with_alpha_in_its_header(saved):
    (weights,) = saved(DIFFUSERS, "diffusers/golden")
    assert weights.name == "pytorch_lora_weights.safetensors"
    tensors, given = load_file(saved.output / weights), load_file(GOLDEN / "peft" / "adapter_model.safetensors")
    assert tensors.keys() == {k.replace("base_model.model.", "transformer.") for k in given}
    with safe_open(saved.output / weights, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (header["transformer.r"], header["transformer.lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("format", [COMFYUI, PEFT, DIFFUSERS])
def test_nothing_is_overwritten(saved, format):
    assert saved(format, "loras/twice") and saved(format, "loras/twice")


@pytest.mark.parametrize(
    "prefix", ["../out", "/etc/out", "a/../../out", "", ".", "a/..", "..", "a\0", "a/\ud800", "x" * 200]
)
@pytest.mark.parametrize("format", [COMFYUI, PEFT, DIFFUSERS])
def test_a_name_outside_the_output_folder_is_refused(saved, format, prefix):
    def files():
        return {p for p in saved.output.parent.rglob("*") if p.is_file()}

    before = files()
    with pytest.raises(ours("trainers.errors").UserError, match="filename_prefix"):
        saved(format, prefix)
    assert files() == before


def test_an_unknown_format_is_refused(pack, saved):
    with pytest.raises(pack.Refused, match="format"):
        saved("pickle", "loras/golden")
