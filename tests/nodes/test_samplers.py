"""Sampling videos with the sampler nodes."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from types import SimpleNamespace

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
def generate(run_node, load, item):
    """The sampler's outputs for an item of TinyWorld, with some inputs changed."""
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
    return dataclasses.replace(loaded, loras=((file, 1.0),))


def test_a_small_card_gives_the_same_video_with_a_lora_too(generate, load, node, tmp_path, monkeypatch):
    """Blocks are swapped and guidance branches computed one by one there, and no longer once there is room again."""
    policy = adapter(load(node), tmp_path)
    blocks = ours("trainers.policies.blocks").running_blocks(policy.policy.transformer)
    expected, swapped = generate(node, policy=policy)[0], []
    with monkeypatch.context() as small:
        for module in ("nodes.fit", "nodes.sampling"):
            small.setattr(ours(module), "room", lambda: 1.0)
        hook = blocks[0].register_forward_pre_hook(lambda block, given: swapped.append(len(given[0])))
        found = generate(node, policy=policy)[0]
        assert (found - expected).abs().max() < 0.01 and found.std() > 0.01
        assert swapped and set(swapped) == {1} and all(block._compiled_call_impl for block in blocks)
        assert not hasattr(blocks[0].attn1.to_q, "lora_A")
        hook.remove()
    assert (generate(node, policy=policy)[0] == expected).all()
    assert not any(block._compiled_call_impl for block in blocks)


def test_unipc_is_nearer_to_the_exact_video_than_euler_in_as_many_steps(generate, node):
    scales = dict.fromkeys(SCALES[node], 1.0)
    exact = generate(node, **scales, steps=60)[0]
    missed = {
        solver: (generate(node, **scales, steps=10, solver=solver)[0] - exact).abs().mean()
        for solver in ("euler", "unipc")
    }
    assert 0 < missed["unipc"] < 0.8 * missed["euler"]


def test_the_video_is_that_of_the_trainers(generate, node, load, item):
    images = generate(node)[0]
    base, policy = ours("trainers.policies.base"), load(node).policy
    size = base.VideoSize(TINY["height"], TINY["width"], TINY["frames"])
    scales = SCALES[node]
    guidance = base.Guidance(scales.get("cfg") or scales["text_cfg"], scales.get("image_cfg"))
    plain = dataclasses.replace(item, extra={})
    expected = ours("trainers.diffusion.sampling").sample_videos(
        policy, [policy.encode(plain, size)], size, TINY["steps"], TINY["shift"], guidance, [TINY["seed"]]
    )
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), expected[0])


def test_the_latent_holds_the_clip_alone_in_the_vaes_own_units(generate, node, load):
    images, latent = generate(node)[:2]
    assert latent["samples"].shape == (1, 16, 3, 6, 10)
    with torch.no_grad():
        decoded = load(node).policy.vae.model.decode(latent["samples"]).sample[0].permute(1, 2, 3, 0)
    assert (decoded.clamp(-1, 1) / 2 + 0.5 - images).abs().max() < 0.01


def test_the_video_carries_the_frame_rate_of_the_model(generate, node):
    images, _, video, fps = generate(node)
    parts = video.get_components()
    assert fps == 10 and parts.frame_rate == fps and torch.equal(parts.images, images)


def test_the_seed_decides(generate, node):
    first, again, other = (generate(node, seed=seed)[0] for seed in (1, 1, 2**64 - 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_order_of_the_people_counts(generate, node, item):
    slots = {f"ref{i}": torch.from_numpy(r)[None].float() / 255 for i, r in enumerate(reversed(item.references))}
    assert not torch.equal(generate(node)[0], generate(node, references=slots)[0])


def test_a_batch_in_one_slot_is_that_many_people(generate, node, item):
    batch = torch.stack([torch.from_numpy(r).float() / 255 for r in item.references])
    assert torch.equal(generate(node)[0], generate(node, references={"ref0": batch})[0])


def test_a_lora_acts_while_sampling_and_leaves_nothing_behind(generate, node, load, tmp_path):
    before = generate(node)[0]
    changed = generate(node, policy=adapter(load(node), tmp_path))[0]
    assert not torch.equal(before, changed)
    assert torch.equal(before, generate(node)[0])


def test_two_loras_act_as_one_with_both_strengths(generate, node, load, tmp_path):
    acting = adapter(load(node), tmp_path)
    (file, _), *_ = acting.loras
    both, one = (
        generate(node, policy=dataclasses.replace(acting, loras=tuple((file, strength) for strength in strengths)))[0]
        for strengths in ((0.25, 0.5), (0.75,))
    )
    assert not torch.equal(both, generate(node)[0])
    torch.testing.assert_close(both, one, atol=0.02, rtol=0)


def test_strength_0_equals_no_lora_bit_for_bit(generate, node, load, tmp_path):
    acting = adapter(load(node), tmp_path, scale=100.0)
    off = dataclasses.replace(acting, loras=((acting.loras[0][0], 0.0),))
    assert torch.equal(generate(node)[0], generate(node, policy=off)[0])


def test_a_lora_of_another_model_is_refused_and_leaves_nothing_behind(generate, node, load, tmp_path, pack):
    lora = adapter(load(node), tmp_path)
    formats = ours("trainers.lora.formats")
    wide = formats.read_lora(lora.loras[0][0].path)
    modules = {name: (torch.cat([a, a], 1), b) for name, (a, b) in wide.modules.items()}
    formats.write_native(formats.LoRA(modules, wide.alpha), tmp_path / "lora.safetensors")
    before = generate(node)[0]
    with pytest.raises(pack.UserError, match="another size"):
        generate(node, policy=lora)
    assert torch.equal(before, generate(node)[0])


@pytest.mark.parametrize(("node", "other"), [(VACE, PHANTOM), (PHANTOM, VACE)])
def test_the_other_kind_of_policy_is_refused_with_the_name_of_its_sampler(generate, load, node, other, pack):
    kind = {VACE: "VACE", PHANTOM: "Phantom"}[other]
    with pytest.raises(pack.UserError, match=f"use the {kind} Sampler"):
        generate(node, policy=load(other))


def test_a_missing_reference_is_refused_before_anything_runs(generate, pack, node):
    with pytest.raises(pack.Refused, match="missing: ref0"):
        generate(node, references={})


def test_a_batch_of_more_people_than_the_model_takes_is_refused(generate, pack, node):
    most = {VACE: 8, PHANTOM: 4}[node]
    with pytest.raises(pack.UserError, match=f"holds {most + 1} pictures and takes at most {most}"):
        generate(node, references={"ref0": torch.zeros(most + 1, 8, 8, 3)})


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_one_error_on_the_prompt(generate, pack, node, prompt):
    with pytest.raises(pack.Refused) as refused:
        generate(node, prompt=prompt)
    assert refused.value.problems == [("prompt", "the prompt is empty; describe the video")]
    with pytest.raises(pack.UserError, match="the prompt is empty; describe the video"):
        generate(node, prompt=pack.Linked(prompt))


@pytest.mark.parametrize(
    ("wrong", "name", "text"),
    [
        ({"height": 8}, "height", "smaller than min of 16"),
        ({"width": 100000}, "width", "bigger than max of 4096"),
        ({"frames": 0}, "frames", "smaller than min of 1"),
        ({"frames": 4001}, "frames", "bigger than max of 1025"),
        ({"steps": 0}, "steps", "smaller than min of 1"),
        ({"seed": -1}, "seed", "smaller than min of 0"),
        ({"solver": "magic"}, "solver", "not in list"),
    ],
)
def test_a_value_beyond_its_limits_is_one_error_on_its_input(generate, pack, node, wrong, name, text):
    with pytest.raises(pack.Refused) as refused:
        generate(node, **wrong)
    ((found, problem),) = refused.value.problems
    assert found == name and text in problem


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"width": 90}, "width 90 is not a multiple of 16 from 16 to 4096; use 96"),
        ({"height": 100}, "height 100 is not a multiple of 16 from 16 to 4096; use 96"),
        ({"frames": 80}, "frames 80 is not 4n\\+1 from 1 to 1025; use 81"),
    ],
)
def test_a_size_that_no_model_generates_is_refused_before_the_model_loads(generate, pack, node, wrong, text):
    """A link may bring any of these; the editor's widgets do not let them through."""
    unloaded = dataclasses.replace(load_nothing(pack, node))
    with pytest.raises(pack.UserError, match=text):
        generate(node, policy=unloaded, **wrong)
    with pytest.raises(pack.UserError, match=text):
        generate(node, policy=unloaded, **{name: pack.Linked(value) for name, value in wrong.items()})


def load_nothing(pack, node):
    """The policy of the node's kind, which fails the test when it is loaded."""
    types, config = ours("nodes.types"), ours("trainers.config").PolicyConfig
    kind = "vace" if node == VACE else "phantom"
    source = "tinyworld" if node == VACE else "tinyworld-phantom"
    return types.LazyPolicy(kind, config(source=source), types.OnUse(lambda: pytest.fail("the model was loaded")))


@pytest.mark.parametrize("size", [{"width": 832, "height": 480, "frames": 81}, {"width": 832, "height": 480}])
def test_wans_size_is_refused_for_tinyworld_with_its_own(generate, pack, node, size):
    with pytest.raises(
        pack.UserError, match=r"TinyWorld generates 80x48 with 9 frames.*Set width 80, height 48, frames 9"
    ):
        generate(node, policy=load_nothing(pack, node), **size)


def test_wans_size_is_that_of_a_wan_model(pack, monkeypatch):
    base, sampling = ours("trainers.policies.base"), ours("nodes.sampling")
    policy = dataclasses.replace(load_nothing(pack, VACE), config=ours("trainers.config").PolicyConfig(source="wan"))
    monkeypatch.setattr(sampling, "native_size", lambda source: base.VideoSize(480, 832, 81))
    sampling.check_size(policy, base.VideoSize(720, 1280, 121))
    with pytest.raises(pack.UserError, match="this model generates 832x480 with 81 frames"):
        sampling.check_size(policy, base.VideoSize(4096, 4096, 1025))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("steps", 10**9), ("shift", 0.0), ("shift", float("nan")), ("seed", -1), ("scale", float("inf"))],
)
def test_a_number_from_a_link_that_the_widget_would_not_take_is_refused(generate, pack, node, name, value):
    for given in SCALES[node] if name == "scale" else [name]:
        with pytest.raises(pack.UserError, match=f"{given} {value} is outside of "):
            generate(node, policy=load_nothing(pack, node), **{given: pack.Linked(value)})


def test_wans_negative_prompt_is_the_default(pack, schema, node):
    default = {i.id: i for i in schema(node).inputs}["negative"].default
    assert default == ours("trainers.config").WAN_NEGATIVE_PROMPT and default.startswith("\u8272\u8c03\u8273\u4e3d")


def test_half_an_emoji_in_a_text_is_dropped(generate, node):
    cut = generate(node, prompt="a person waves \ud83d", negative="\ude00 blurry")[0]
    assert torch.equal(cut, generate(node, prompt="a person waves ", negative=" blurry")[0])


def test_grey_references_and_control_clips_are_as_rgb(generate, item):
    grey = torch.from_numpy(item.references[0])[None].float().mean(-1, keepdim=True) / 255
    one, three = ({"references": {"ref0": r}, "control_video": r} for r in (grey, grey.expand(-1, -1, -1, 3)))
    assert torch.equal(generate(VACE, **one)[0], generate(VACE, **three)[0])


@pytest.mark.parametrize("name", ["control_video", "references", "control_mask"])
def test_pictures_that_are_not_finite_are_refused_with_the_name_of_the_input(generate, name, pack):
    broken = torch.full((1, 48, 80) if name == "control_mask" else (1, 48, 80, 3), float("nan"))
    with pytest.raises(pack.UserError, match=rf"`{name}(\.ref0)?` holds numbers that are not finite \(NaN\)"):
        generate(VACE, **{name: {"ref0": broken} if name == "references" else broken})


def test_latents_that_are_not_finite_are_an_error_with_a_remedy(generate, node, load, tmp_path, pack):
    """As after an overflow in half precision, or with a LoRA at far too high a strength."""
    ((file, _),) = adapter(load(node), tmp_path, scale=1e15).loras
    broken = dataclasses.replace(load(node), loras=((file, 1e15),))
    with pytest.raises(pack.UserError, match="not finite.*(float32|strength)"):
        generate(node, policy=broken)
    assert torch.isfinite(generate(node)[0]).all()


def test_a_masked_control_video_keeps_what_is_black(generate, load):
    """A control clip enters as the policy's own: resized, grey and white where it ends."""
    images = generate(VACE)[0]
    clip = torch.nn.functional.interpolate(images[:5].movedim(-1, 1), scale_factor=2).movedim(1, -1)
    kept = generate(VACE, control_video=clip, control_mask=torch.zeros(5, 96, 160))[0]
    assert not torch.equal(kept, images)
    sampling, size = ours("nodes.sampling"), ours("trainers.policies.base").VideoSize(48, 80, 9)
    video, mask = sampling.to_control_clip(clip, size), sampling.to_control_mask(torch.zeros(5, 96, 160), size)
    assert video.shape == (9, 48, 80, 3) and mask.shape == (9, 48, 80)
    assert torch.allclose(video[:5], images[:5] * 255, atol=1e-3) and (video[5:] == 127.5).all()
    assert (mask[:5] == 0).all() and (mask[5:] == 1).all()


@pytest.mark.parametrize("shape", [(48, 80), (1, 48, 80), (1, 1, 48, 80), (1, 48, 80, 1)])
def test_one_mask_of_any_shape_serves_all_frames(pack, shape):
    size = ours("trainers.policies.base").VideoSize(48, 80, 9)
    mask = ours("nodes.sampling").to_control_mask(torch.zeros(shape), size)
    assert mask.shape == (9, 48, 80) and not mask.any()


def test_a_new_seed_does_not_run_the_text_encoder_again(generate, node, load):
    generate(node)
    asked = []
    hook = load(node).policy.text.encoder.register_forward_hook(lambda *_: asked.append(1))
    generate(node, seed=8)
    hook.remove()
    assert not asked


def test_every_step_is_counted_and_shown(generate, node, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append((v, t, p)))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    generate(node)
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [picture.size for _, _, (_, picture, _) in seen] == [(320, 192)] * 3


def test_wans_own_latents_are_shown_as_comfyui_shows_them(generate, load, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils
    from comfy.latent_formats import Wan21

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append(p))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(load(VACE).policy.vae, "mean", Wan21().latents_mean)
    generate(VACE)
    assert [picture.size for _, picture, _ in seen] == [(10, 6)] * 3


def test_no_preview_is_made_when_the_user_wants_none(generate, node, pack, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda v, t, p, node_id=None: seen.append(p))
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.NoPreviews)
    generate(node)
    assert set(seen) == {None}


def test_cancel_ends_sampling_after_the_step_in_progress(generate, node, pack, monkeypatch):
    import comfy.model_management as management
    import comfy.utils

    shown = []

    def cancel(value, total, preview, node_id=None):
        shown.append(value)
        management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(management.InterruptProcessingException):
        generate(node, steps=50)
    assert shown == [1]
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    generate(node)


def test_out_of_memory_names_what_to_lower(generate, node, load, monkeypatch, pack):
    import comfy.model_management as management

    def fail(*_, **__):
        raise management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(load(node).policy.transformer, "forward", fail)
    with pytest.raises(pack.UserError, match=r"out of memory at 80x48, 9 frames .*lower `frames`"):
        generate(node)


def test_a_video_whose_frames_do_not_fit_into_memory_is_refused(pack, monkeypatch):
    base, sampling = ours("trainers.policies.base"), ours("nodes.sampling")
    monkeypatch.setattr(sampling.psutil, "virtual_memory", lambda: SimpleNamespace(available=16e9))
    settings = sampling.Sampling(base.VideoSize(2048, 2048, 1025), 3, 3.0, base.Guidance(), 0, "euler")
    with pytest.raises(
        pack.UserError, match="about 155 GB of memory for its frames, and 16 GB are free; lower `frames`"
    ):
        sampling.generate(load_nothing(pack, VACE), settings, None)
