"""Drawing videos through the sampler nodes."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import pytest
import torch

VACE, PHANTOM, LOAD = "IdentityGRPOVACESampler", "IdentityGRPOPhantomSampler", "IdentityGRPOLoadModel"
TINY = {"negative": "", "width": 80, "height": 48, "frames": 9, "steps": 3, "shift": 3.0, "seed": 7}
SCALES = {VACE: {"cfg": 2.0}, PHANTOM: {"text_cfg": 3.0, "image_cfg": 2.0}}
MODELS = {VACE: "TinyWorld VACE (built in)", PHANTOM: "TinyWorld Phantom (built in)"}


def ours(name: str):
    return import_module(f"identity_grpo.{name}")


@pytest.fixture(scope="module")
def item(pack):
    found = ours("trainers.tinyworld.prompts").tiny_prompt_set("held_out", 8)
    return next(i for i in found if len(i.references) == 2)


@pytest.fixture(scope="module")
def load(pack):
    """Loaded policies by sampler, each loaded once."""
    loaded = {}

    def get(node: str):
        if node not in loaded:
            choices = {"text_encoder": "beside the model", "vae": "beside the model"}
            options = {"dtype": "float32", "attention": "sdpa", "offload": "when memory is needed"}
            with torch.inference_mode():
                loaded[node] = pack.nodes[LOAD].execute(model=MODELS[node], **choices, **options).args[0]
        return loaded[node]

    return get


@pytest.fixture(params=[VACE, PHANTOM])
def node(request):
    return request.param


@pytest.fixture
def draw(run_node, load, item):
    """The sampler's outputs for a TinyWorld item, with some inputs changed."""
    slots = {f"ref{i}": torch.from_numpy(r)[None].float() / 255 for i, r in enumerate(item.references)}

    def run(node: str, **changes):
        given = {"policy": load(node), "references": slots, "prompt": item.prompt, **TINY, **SCALES[node]}
        return run_node(node, **given | changes)

    return run


def adapter(loaded, tmp_path, scale: float = 1.0):
    """The policy with a LoRA of random numbers from a file."""
    inject, formats = ours("trainers.lora.inject"), ours("trainers.lora.formats")
    transformer = loaded.policy.transformer
    inject.add_lora(transformer, 2, 2.0, seed=0)
    with torch.no_grad():
        for parameter in inject.lora_parameters(transformer).values():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * scale)
    formats.write_native(inject.to_lora(transformer), tmp_path / "lora.safetensors")
    inject.remove_lora(transformer)
    file = ours("nodes.folders").LoraFile(tmp_path / "lora.safetensors", "lora.safetensors")
    return dataclasses.replace(loaded, lora=file)


def test_unipc_comes_nearer_to_the_exact_video_than_euler_in_as_many_steps(draw, node):
    scales = dict.fromkeys(SCALES[node], 1.0)
    exact = draw(node, **scales, steps=60)[0]
    missed = {
        solver: (draw(node, **scales, steps=10, solver=solver)[0] - exact).abs().mean() for solver in ("euler", "unipc")
    }
    assert 0 < missed["unipc"] < 0.8 * missed["euler"]


def test_the_video_is_the_trainers_own(draw, node, load, item):
    images, _ = draw(node)
    base, policy = ours("trainers.policies.base"), load(node).policy
    size = base.VideoSize(TINY["height"], TINY["width"], TINY["frames"])
    scales = SCALES[node]
    guidance = base.Guidance(scales.get("cfg") or scales["text_cfg"], scales.get("image_cfg"))
    plain = dataclasses.replace(item, extra={})
    expected = ours("trainers.grpo.rollout").sample(
        policy, [policy.encode(plain, size)], size, TINY["steps"], TINY["shift"], guidance, [TINY["seed"]]
    )
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), expected[0])


def test_the_latent_holds_the_clip_alone_in_the_vaes_own_units(draw, node, load):
    images, latent = draw(node)
    assert latent["samples"].shape == (1, 16, 3, 6, 10)
    with torch.no_grad():
        decoded = load(node).policy.vae.model.decode(latent["samples"]).sample[0].permute(1, 2, 3, 0)
    assert (decoded.clamp(-1, 1) / 2 + 0.5 - images).abs().max() < 0.01


def test_the_seed_decides(draw, node):
    first, again, other = (draw(node, seed=seed)[0] for seed in (1, 1, 2**64 - 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_order_of_the_people_counts(draw, node, item):
    slots = {f"ref{i}": torch.from_numpy(r)[None].float() / 255 for i, r in enumerate(reversed(item.references))}
    assert not torch.equal(draw(node)[0], draw(node, references=slots)[0])


def test_a_batch_in_one_slot_is_that_many_people(draw, node, item):
    batch = torch.stack([torch.from_numpy(r).float() / 255 for r in item.references])
    assert torch.equal(draw(node)[0], draw(node, references={"ref0": batch})[0])


def test_a_lora_acts_while_sampling_and_leaves_nothing_behind(draw, node, load, tmp_path):
    before = draw(node)[0]
    changed = draw(node, policy=adapter(load(node), tmp_path))[0]
    assert not torch.equal(before, changed)
    assert torch.equal(before, draw(node)[0])


def test_strength_0_equals_no_lora_bit_for_bit(draw, node, load, tmp_path):
    off = dataclasses.replace(adapter(load(node), tmp_path, scale=100.0), strength=0.0)
    assert torch.equal(draw(node)[0], draw(node, policy=off)[0])


def test_a_lora_of_another_model_is_refused_and_leaves_nothing_behind(draw, node, load, tmp_path):
    lora = adapter(load(node), tmp_path)
    formats = ours("trainers.lora.formats")
    wide = formats.read_lora(lora.lora.path)
    modules = {name: (torch.cat([a, a], 1), b) for name, (a, b) in wide.modules.items()}
    formats.write_native(formats.LoRA(modules, wide.alpha), tmp_path / "lora.safetensors")
    before = draw(node)[0]
    with pytest.raises(ours("trainers.errors").UserError, match="another size"):
        draw(node, policy=lora)
    assert torch.equal(before, draw(node)[0])


@pytest.mark.parametrize(("node", "other"), [(VACE, PHANTOM), (PHANTOM, VACE)])
def test_the_other_kind_of_policy_is_sent_to_its_sampler(draw, load, node, other):
    kind = {VACE: "VACE", PHANTOM: "Phantom"}[other]
    with pytest.raises(ours("trainers.errors").UserError, match=f"use the {kind} Sampler"):
        draw(node, policy=load(other))


def test_a_missing_reference_is_refused_before_anything_runs(draw, pack, node):
    with pytest.raises(pack.Refused, match="missing: ref0"):
        draw(node, references={})


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"width": 90}, "use 96"),
        ({"height": 8}, "use 16"),
        ({"width": 100000}, "use 4096"),
        ({"frames": 80}, "use 81"),
        ({"frames": 0}, "use 1"),
        ({"frames": 4001}, "use 1025"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused_before_anything_runs(pack, node, wrong, remedy):
    given = {"width": 80, "height": 48, "frames": 9} | wrong
    assert remedy in pack.nodes[node].validate_inputs(**given)


def test_growing_slots_are_handed_to_the_check_too(pack, node):
    """ComfyUI passes the group as a keyword whatever `validate_inputs` asks for."""
    assert pack.nodes[node].validate_inputs(width=80, height=48, frames=9, references={}) is True


def test_a_linked_size_is_not_judged_before_it_is_known(pack, node):
    assert pack.nodes[node].validate_inputs(width=None, height=48, frames=None) is True


def test_a_masked_control_video_keeps_what_is_black(draw, load):
    """A control clip enters as the policy's own: resized, grey and white where it ends."""
    images, _ = draw(VACE)
    clip = torch.nn.functional.interpolate(images[:5].movedim(-1, 1), scale_factor=2).movedim(1, -1)
    kept, _ = draw(VACE, control_video=clip, control_mask=torch.zeros(5, 96, 160))
    assert not torch.equal(kept, images)
    sampling, size = ours("nodes.sampling"), ours("trainers.policies.base").VideoSize(48, 80, 9)
    video, mask = sampling.to_control_clip(clip, size), sampling.to_control_mask(torch.zeros(5, 96, 160), size)
    assert video.shape == (9, 48, 80, 3) and mask.shape == (9, 48, 80)
    assert torch.allclose(video[:5], images[:5] * 255, atol=1e-3) and (video[5:] == 127.5).all()
    assert (mask[:5] == 0).all() and (mask[5:] == 1).all()


def test_one_mask_serves_all_frames(pack):
    mask = ours("nodes.sampling").to_control_mask(
        torch.zeros(1, 48, 80), ours("trainers.policies.base").VideoSize(48, 80, 9)
    )
    assert mask.shape == (9, 48, 80) and not mask.any()


def test_a_new_seed_does_not_ask_the_text_encoder_again(draw, node, load):
    draw(node)
    asked = []
    hook = load(node).policy.text.encoder.register_forward_hook(lambda *_: asked.append(1))
    draw(node, seed=8)
    hook.remove()
    assert not asked


def test_every_step_is_counted_and_shown(draw, node, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append((v, t, p)))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    draw(node)
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [picture.size for _, _, (_, picture, _) in seen] == [(320, 192)] * 3


def test_wans_own_latents_are_shown_as_comfyui_shows_them(draw, load, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils
    from comfy.latent_formats import Wan21

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append(p))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(load(VACE).policy.vae, "mean", Wan21().latents_mean)
    draw(VACE)
    assert [picture.size for _, picture, _ in seen] == [(10, 6)] * 3


def test_no_preview_is_made_when_the_user_wants_none(draw, node, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append(p))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.NoPreviews)
    draw(node)
    assert set(seen) == {None}


def test_cancel_ends_sampling_after_the_step_in_flight(draw, node, pack, monkeypatch):
    import comfy.model_management as management
    import comfy.utils

    shown = []

    def cancel(value, total, preview, node_id=None):
        shown.append(value)
        management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(management.InterruptProcessingException):
        draw(node, steps=50)
    assert shown == [1]
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    draw(node)


def test_out_of_memory_says_what_to_lower(draw, node, load, monkeypatch):
    import comfy.model_management as management

    def fail(*_, **__):
        raise management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(load(node).policy.transformer, "forward", fail)
    with pytest.raises(ours("trainers.errors").UserError, match=r"out of memory at 80x48, 9 frames .*lower `frames`"):
        draw(node)


def test_a_video_whose_frames_alone_do_not_fit_is_refused_before_it_is_made(draw, node):
    with pytest.raises(ValueError, match="GB of memory for its frames.*lower `frames`"):
        draw(node, width=4096, height=4096, frames=1025)
