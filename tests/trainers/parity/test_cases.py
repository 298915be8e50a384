import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.commands.verify import main as run_command
from trainers.errors import UserError
from trainers.lora.names import to_original
from trainers.parity.cases import case_kind, find_cases, verify, verify_case
from trainers.parity.checks import Check, compare, equal

GOLDEN = Path(__file__).parents[2] / "golden"


def main(paths) -> int:
    return run_command(Namespace(path=paths))


def copy(tmp_path, *cases):
    for case in cases:
        shutil.copytree(GOLDEN / case, tmp_path / case, copy_function=shutil.copyfile)
    return tmp_path


def change(path, key, by=0.01):
    tensors = load_file(path)
    tensors[key] = tensors[key] + by
    path.unlink()
    save_file(tensors, path)


@pytest.mark.parametrize("kind", ["sde", "vace", "phantom", "lora"])
def test_a_case_is_recognised_by_its_files_and_within_tolerance(kind, capsys):
    assert case_kind(GOLDEN / kind) == kind
    assert main([GOLDEN / kind]) == 0
    printed = capsys.readouterr().out
    assert "relative" in printed
    assert printed.rstrip().endswith("all within tolerance")


@pytest.mark.parametrize(
    ("case", "file", "key"),
    [
        ("sde", "sigmas.safetensors", "shift5.sigmas"),
        ("sde", "steps.safetensors", "shift3.step12.log_prob"),
        ("sde", "steps.safetensors", "shift5.mixed.prev_sample_mean"),
        ("sde", "steps.safetensors", "shift3.step24.ode_next_sample"),
        ("sde", "losses.safetensors", "shift3.step05.grad_model_output"),
        ("sde", "losses.safetensors", "shift3.step00.policy_loss"),
        ("vace", "conditioning.safetensors", "refs3_video_mask.m0"),
        ("vace", "conditioning.safetensors", "refs2_no_video.z0"),
        ("vace", "velocity.safetensors", "velocity.video_scaled.0"),
        ("phantom", "trajectory.safetensors", "input_without_refs"),
        ("phantom", "trajectory.safetensors", "sigmas"),
        ("phantom", "trajectory.safetensors", "step2.v_neg"),
        ("phantom", "trajectory.safetensors", "step1.v_guided"),
        ("phantom", "trajectory.safetensors", "other_scales.v_guided"),
        ("phantom", "trajectory.safetensors", "final"),
        ("phantom", "inputs.safetensors", "reference_latents"),
        ("lora", "velocity.safetensors", "velocity.original_merged.0.5"),
        ("lora", "comfy_native.safetensors", "diffusion_model.blocks.1.self_attn.o.alpha"),
        ("lora", "comfy_native.safetensors", "diffusion_model.blocks.0.cross_attn.k.lora_up.weight"),
    ],
)
def test_a_changed_expectation_is_an_error(tmp_path, capsys, case, file, key):
    root = copy(tmp_path, case, *({"vace"} if case == "lora" else set()))
    change(root / case / file, key)
    assert main([root / case]) == 1
    assert "OUT" in capsys.readouterr().out


def test_changed_advantages_are_an_error(tmp_path):
    path = copy(tmp_path, "sde") / "sde" / "advantages.json"
    cases = json.loads(path.read_text())
    cases[0]["advantages_global_std_true"][2] += 1e-6
    path.unlink()
    path.write_text(json.dumps(cases))
    assert [r.name for r in verify([tmp_path / "sde"]) if not r.ok] == ["advantages.vector.global_std_true"]


def test_a_folder_may_hold_several_cases_under_any_names(tmp_path):
    for seed in ("one", "two"):
        copy(tmp_path / seed, "sde")
    copy(tmp_path / "rest", "vace", "lora")
    (tmp_path / "rest" / "vace").rename(tmp_path / "rest" / "weights of a case")
    assert len(find_cases(tmp_path)) == 4
    assert all(r.ok for r in verify([tmp_path]))


def test_the_adapter_finds_its_own_transformer_among_several(tmp_path):
    copy(tmp_path, "vace", "lora")
    other = tmp_path / "a vace of other weights"
    shutil.copytree(tmp_path / "vace", other)
    weights = load_file(other / "vace_tiny.safetensors")
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"] * 2
    save_file(weights, other / "vace_tiny.safetensors", metadata={"config": '{"transformer": {"num_heads": 2}}'})
    assert all(r.ok for r in verify_case(tmp_path / "lora"))


def test_an_adapter_without_its_transformer_fails(tmp_path, capsys):
    copy(tmp_path, "lora")
    assert main([tmp_path / "lora"]) == 1
    assert "put that case's folder beside it" in capsys.readouterr().out


def test_a_folder_without_a_case_fails_and_does_not_hide_the_rest(tmp_path, capsys):
    copy(tmp_path, "sde")
    (tmp_path / "pictures").mkdir()
    assert main([tmp_path]) == 1
    printed = capsys.readouterr().out
    assert "pictures is not a golden case" in printed
    assert "shift3.sigmas" in printed


def test_folders_without_a_case_are_one_line(tmp_path, capsys):
    for name in ("pictures", "notes"):
        (tmp_path / name).mkdir()
    assert main([tmp_path]) == 1
    assert capsys.readouterr().out.count("NOT VERIFIED") == 1


def test_an_empty_path_fails(tmp_path):
    assert main([tmp_path / "nowhere"]) == 1


def test_a_case_that_lacks_a_tensor_fails(tmp_path, capsys):
    path = copy(tmp_path, "sde") / "sde" / "steps.safetensors"
    tensors = load_file(path)
    del tensors["shift3.step05.log_prob"]
    path.unlink()
    save_file(tensors, path)
    assert main([tmp_path / "sde"]) == 1
    assert "cannot be recomputed" in capsys.readouterr().out
    with pytest.raises(UserError, match="log_prob"):
        verify_case(tmp_path / "sde")


@pytest.mark.parametrize("content", ["[]", '{"cases": 3}', '{"cases": [{"key": "shift3.step05"}]}', "{", "\0"])
def test_a_case_with_a_broken_description_fails(tmp_path, capsys, content):
    (copy(tmp_path, "sde") / "sde" / "meta.json").write_text(content)
    assert main([tmp_path / "sde"]) == 1
    assert "sde case" in capsys.readouterr().out


def test_a_case_of_other_sizes_is_read_from_its_files(tmp_path):
    """Other depth, width, heads, control placement, references, frames and text length than the committed case."""
    from diffusers import WanVACETransformer3DModel

    from trainers.policies.vace import control_latents, predict
    from trainers.policies.wan import use_exact_time_features

    torch.manual_seed(4)
    case = tmp_path / "vace"
    case.mkdir()
    model = WanVACETransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=12,
        text_dim=20,
        freq_dim=64,
        ffn_dim=40,
        num_layers=5,
        vace_layers=[0, 1, 4],
        vace_in_channels=96,
        rope_max_seq_len=64,
    )
    model.save_pretrained(case / "diffusers")
    names = {to_original(n): n for n in model.state_dict()}
    save_file(
        {o: model.state_dict()[n].contiguous() for o, n in names.items()},
        case / "net.safetensors",
        metadata={"config": '{"transformer": {"num_heads": 3, "text_dim": 20, "text_len": 9}}'},
    )
    (case / "config.json").write_text(json.dumps({"dim": 36, "num_heads": 3, "vace_layers": [0, 1, 4], "text_len": 9}))
    (case / "key_map.json").write_text(json.dumps(names))
    mask = torch.rand(1, 5, 16, 32)
    inactive, reactive, references = torch.randn(16, 2, 2, 4), torch.randn(16, 2, 2, 4), torch.randn(4, 16, 1, 2, 4)
    control = control_latents(inactive, reactive, list(references), mask[0])
    save_file(
        {
            "source_frames": torch.rand(3, 5, 16, 32),
            "source_mask": mask,
            "refs4_video_mask.latent_inactive": inactive,
            "refs4_video_mask.latent_reactive": reactive,
            "refs4_video_mask.latent_refs": references,
            "refs4_video_mask.z0": control[:32].clone(),
            "refs4_video_mask.m0": control[32:].clone(),
            "refs4_video_mask.vace_context": control,
        },
        case / "conditioning.safetensors",
    )
    use_exact_time_features(model)
    noise, text = torch.randn(16, 6, 2, 4), torch.randn(5, 20)
    padded = torch.cat([text, torch.zeros(4, 20)])
    with torch.no_grad():
        velocity = predict(
            model, noise[None], torch.tensor([321.5]), padded[None], control[None], torch.full((3,), 0.7)
        )[0]
    save_file(
        {"noise.refs4_video_mask": noise, "context0": text, "velocity.only.0": velocity}, case / "velocity.safetensors"
    )
    (case / "cases.json").write_text(
        json.dumps(
            {
                "cases": {
                    "only": {"samples": ["refs4_video_mask"], "context": [0], "t": [321.5], "seq_len": 12, "scale": 0.7}
                }
            }
        )
    )
    results = verify_case(case)
    assert {r.name for r in results} >= {"velocity.only.0 (original weights)", "refs4_video_mask.m0", "key_map"}
    assert [r for r in results if not r.ok] == []


@pytest.mark.parametrize(
    ("found", "expected", "kind", "error"),
    [
        ([1.0, 2.5], [1.0, 2.0], "absolute", 0.5),
        ([1.0, 2.5], [1.0, 2.0], "relative", 0.25),
        ([1, 3, 3], [1, 2, 4], "exact", 2),
        ([1.0], [1.0, 2.0], "absolute", float("inf")),
        ([float("nan")], [1.0], "absolute", float("inf")),
        ([], [], "absolute", 0),
    ],
)
def test_errors_follow_their_kind(found, expected, kind, error):
    assert compare("q", torch.tensor(found), torch.tensor(expected), 1.0, kind).error == error


def test_a_nan_error_is_out_of_tolerance():
    assert not Check("q", float("nan"), 1.0, "absolute").ok


def test_names_are_compared_entry_by_entry():
    assert equal("q", {"a": "b", "c": "d"}, {"a": "b", "c": "e", "f": "g"}).error == 2
    assert equal("q", ["a"], ["a"]).ok
