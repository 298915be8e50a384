"""LoRAs and references in graphs of core's nodes: core's models, our policies and the golden cases agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
LORA = "golden.safetensors"


def relative(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def golden_lora(pack):
    """The golden adapter among ComfyUI's LoRAs; its choice."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "lora" / "comfy_native.safetensors", folder / LORA)
    return LORA


@pytest.fixture(scope="module")
def core_vace(real_comfyui, pack):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(GOLDEN / "vace" / "vace_tiny.safetensors"))


@pytest.fixture(scope="module")
def core_wan(real_comfyui, pack):
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(GOLDEN / "phantom" / "phantom_tiny.safetensors"))


def velocity(model, x, timestep, **conditions):
    """Core's velocity for x [B, C, F, h, w]: it gives x - sigma v."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    sigma = timestep / 1000
    with torch.no_grad():
        return (x - model.model.apply_model(x, sigma, **conditions)) / sigma.view(-1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def vace_case():
    given = load_file(GOLDEN / "lora" / "velocity.safetensors")
    return given, {
        "x": given["noise"][None],
        "timestep": given["timestep"].float(),
        "c_crossattn": given["context_padded"][None],
        "vace_context": given["vace_context"][None, None],
        "vace_strength": [1.0],
    }


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_core_with_apply_lora_gives_the_velocity_of_our_policy(run_node, core_vace, golden_lora, vace_case, strength):
    from trainers.lora.formats import read_lora
    from trainers.lora.inject import load_lora_into
    from trainers.policies.load import load_transformer
    from trainers.policies.vace import predict

    given, case = vace_case
    (patched,) = run_node("IdentityGRPOApplyLoRA", model=core_vace, lora=golden_lora, strength=strength)
    core = velocity(patched, **case)
    ours = load_transformer(GOLDEN / "vace" / "vace_tiny.safetensors")
    load_lora_into(ours, read_lora(GOLDEN / "lora" / "peft"), strength)
    layers = len(ours.config.vace_layers)
    with torch.no_grad():
        policy = predict(
            ours, case["x"], case["timestep"], case["c_crossattn"], case["vace_context"][:, 0], torch.ones(layers)
        )
    assert relative(core, policy) < 1e-3
    assert relative(core[0], given[f"velocity.original_merged.{strength}"]) < 1e-3


def test_at_strength_0_core_gives_the_base_velocity_bit_for_bit(run_node, core_vace, golden_lora, vace_case):
    _, case = vace_case
    (patched,) = run_node("IdentityGRPOApplyLoRA", model=core_vace, lora=golden_lora, strength=0.0)
    assert torch.equal(velocity(patched, **case), velocity(core_vace, **case))


def test_the_model_given_keeps_no_lora(run_node, core_vace, golden_lora, vace_case):
    given, case = vace_case
    run_node("IdentityGRPOApplyLoRA", model=core_vace, lora=golden_lora, strength=1.0)
    assert relative(velocity(core_vace, **case)[0], given["velocity.comfy.base"]) < 1e-4


def test_a_lora_of_which_a_part_does_not_fit_is_refused(run_node, core_wan, golden_lora):
    with pytest.raises(ValueError, match="this model does not have"):
        run_node("IdentityGRPOApplyLoRA", model=core_wan, lora=golden_lora, strength=1.0)


class StubVae:
    """The golden case's stand-in VAE as core calls it: pixels [F, H, W, 3] in 0..1 to unnormalised latents."""

    def __init__(self, given):
        self.a, self.b = given["stub_A"], given["stub_b"]

    def encode(self, pixels):
        from comfy.latent_formats import Wan21

        clip = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2) * 2 - 1, 8)
        times = torch.cat([clip[:1], clip[1:].unflatten(0, (-1, 4)).mean(1)]) if len(clip) > 1 else clip
        latents = torch.einsum("cd,fdhw->cfhw", self.a, times) + self.b.view(-1, 1, 1, 1)
        return Wan21().process_out(latents[None])


CASES = pytest.mark.parametrize(
    "case, references, controlled",
    [
        ("refs2_no_video", 2, False),
        ("refs3_no_video", 3, False),
        ("refs3_video_mask", 3, True),
    ],
)


@pytest.fixture(scope="module")
def given():
    return load_file(GOLDEN / "vace" / "conditioning.safetensors")


@pytest.fixture
def condition(run_node, given):
    """VACE References for the first people of the golden case, with or without its control; inputs can be replaced."""
    text = [[torch.zeros(1, 24, 32), {}]]
    people = (given["references"][:, :, 0].permute(0, 2, 3, 1) + 1) / 2
    control = {
        "control_video": (given["source_frames"].permute(1, 2, 3, 0) + 1) / 2,
        "control_masks": given["source_mask"][0],
    }

    def run(count: int, controlled: bool = False, **changes):
        inputs = {
            "positive": text,
            "negative": text,
            "vae": StubVae(given),
            "width": 64,
            "height": 48,
            "length": 9,
            "references": {f"ref{i}": people[i : i + 1] for i in range(count)},
            **(control if controlled else {}),
        }
        return run_node("IdentityGRPOVACEReferences", **inputs | changes)

    return run


@CASES
def test_several_references_are_laid_out_as_by_the_original(condition, given, case, references, controlled):
    from comfy.latent_formats import Wan21

    positive, negative, latent, trim = condition(references, controlled)
    assert trim == references
    assert latent["samples"].shape == (1, 16, *given[f"{case}.vace_context"].shape[1:])
    for _, values in (positive[0], negative[0]):
        (frames,), (mask,) = values["vace_frames"], values["vace_mask"]
        normal = [Wan21().process_in(part) for part in frames.split(16, dim=1)]
        assert relative(torch.cat([*normal, mask], dim=1)[0], given[f"{case}.vace_context"]) < 1e-5


def test_a_batch_in_one_slot_is_that_many_people(condition, given):
    people = (given["references"][:3, :, 0].permute(0, 2, 3, 1) + 1) / 2
    together, apart = condition(3, references={"ref0": people}), condition(3)
    assert together[3] == 3
    assert torch.equal(together[0][0][1]["vace_frames"][0], apart[0][0][1]["vace_frames"][0])


def test_an_earlier_vace_conditioning_is_kept(condition):
    first = condition(1, strength=0.5)
    second = condition(2, positive=first[0], negative=first[1])
    assert second[0][0][1]["vace_strength"] == [0.5, 1.0]
    assert first[0][0][1]["vace_strength"] == [0.5]


@pytest.mark.parametrize(
    ("changes", "guilty"),
    [
        ({"width": 5000}, ["width"]),
        ({"height": 0}, ["height"]),
        ({"length": 0}, ["length"]),
        ({"width": 0, "strength": -1.0}, ["width", "strength"]),
        ({"references": {}}, ["references.ref0"]),
    ],
)
def test_a_wrong_input_is_one_error_on_that_input(condition, pack, changes, guilty):
    with pytest.raises(pack.Refused) as refusal:
        condition(2, **changes)
    assert [name for name, _ in refusal.value.problems] == guilty


NAN, INFINITE = torch.full((1, 48, 64, 3), float("nan")), torch.full((1, 48, 64, 3), float("inf"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 100}, "width 100 .* use 96"),
        ({"height": 40}, "height 40 .* use 32"),
        ({"length": 80}, "length 80 .* use 81"),
        ({"strength": float("nan")}, "strength nan is not a finite number"),
        ({"references": {"ref0": NAN}}, r"references\.ref0.*not finite \(NaN\)"),
        ({"references": {"ref0": INFINITE[:, :20], "ref1": NAN}}, r"references\.ref0.*not finite"),
        ({"references": {"ref0": torch.ones(1, 48, 64, 2)}}, "references.ref0.* has the shape"),
        ({"control_video": NAN}, "control_video.*not finite"),
        ({"references": {"ref0": None}}, "no reference image is connected"),
        ({"control_masks": INFINITE[..., 0]}, "control_masks.*not finite"),
        ({"control_masks": torch.ones(64)}, "control_masks.* has the shape"),
    ],
)
def test_what_core_does_not_check_is_refused_before_any_work(condition, given, changes, words):
    from identity_grpo.trainers.errors import UserError

    class NoVae:
        def encode(self, pixels):
            pytest.fail("the VAE runs")

    with pytest.raises(UserError, match=words):
        condition(2, vae=NoVae(), **changes)


def test_latents_that_are_not_finite_are_refused(condition, given):
    from identity_grpo.trainers.errors import UserError

    class BrokenVae(StubVae):
        def encode(self, pixels):
            return super().encode(pixels) * float("nan")

    with pytest.raises(UserError, match="VAE.*not finite"):
        condition(1, vae=BrokenVae(given))


@pytest.mark.parametrize("shape", [(48, 64), (1, 48, 64), (1, 1, 48, 64), (1, 48, 64, 1)])
def test_masks_of_every_shape_are_the_same_mask(condition, shape):
    mask = (torch.arange(48 * 64).reshape(48, 64) % 3 == 0).float()
    found = condition(1, True, control_masks=mask.reshape(shape))[0][0][1]
    expected = condition(1, True, control_masks=mask[None])[0][0][1]
    for name in ("vace_frames", "vace_mask"):
        assert torch.equal(found[name][0], expected[name][0])


def test_a_picture_of_one_channel_is_grey(condition):
    grey = torch.linspace(0, 1, 48 * 64).reshape(1, 48, 64, 1)
    given = {"references": {"ref0": grey}, "control_video": grey.expand(9, -1, -1, -1)}
    coloured = {"references": {"ref0": grey.expand(-1, -1, -1, 3)}, "control_video": grey.expand(9, -1, -1, 3)}
    found, expected = (condition(1, **inputs)[0][0][1]["vace_frames"][0] for inputs in (given, coloured))
    assert torch.equal(found, expected)


@CASES
def test_cores_sampler_sees_them_so(condition, core_vace, given, case, references, controlled):
    import comfy.sample

    positive, negative, latent, _ = condition(references, controlled)
    seen = []

    def watch(apply_model, args):
        seen.append(args["c"]["vace_context"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = core_vace.clone()
    model.set_model_unet_function_wrapper(watch)
    noise = torch.zeros_like(latent["samples"])
    comfy.sample.sample(
        model, noise, 1, 1.0, "euler", "simple", positive, negative, latent["samples"], disable_pbar=True
    )
    assert relative(seen[0][0, 0], given[f"{case}.vace_context"]) < 1e-5


@pytest.fixture(scope="module")
def core_vae(real_comfyui, pack):
    """Core's Wan VAE, small, with random weights."""
    import comfy.ldm.wan.vae
    import comfy.sd

    torch.manual_seed(0)
    shape = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    vae = comfy.ldm.wan.vae.WanVAE(dim=16, z_dim=16, attn_scales=[], dropout=0.0, **shape)
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return comfy.sd.VAE(sd=vae.state_dict())


def test_cores_ksampler_samples_with_our_conditioning_and_its_vae_decodes_the_rest(
    core_vace, core_vae, run_node, given
):
    """The chain of the template: VACE References, KSampler, Trim Video Latent, VAE Decode."""
    from comfy_extras.nodes_wan import TrimVideoLatent

    import nodes

    text = [[torch.zeros(1, 24, 32), {}]]
    people = {f"ref{i}": torch.rand(1, 48, 64, 3) for i in range(2)}
    positive, negative, latent, trim = run_node(
        "IdentityGRPOVACEReferences",
        positive=text,
        negative=text,
        vae=StubVae(given),
        references=people,
        width=64,
        height=48,
        length=9,
    )
    (sampled,) = nodes.KSampler().sample(core_vace, 1, 1, 1.0, "euler", "simple", positive, negative, latent)
    assert sampled["samples"].shape == (1, 16, 5, 6, 8) and torch.isfinite(sampled["samples"]).all()
    (frames,) = nodes.VAEDecode().decode(core_vae, TrimVideoLatent.execute(sampled, trim).args[0])
    assert frames.shape == (9, 48, 64, 3)


def test_cores_vae_decodes_the_latent_of_our_sampler(core_vae, run_node):
    import nodes

    latent = run_node(
        "IdentityGRPOVACESampler",
        policy=run_node("IdentityGRPOLoadModel")[0],
        references={"ref0": torch.rand(1, 48, 48, 3)},
        prompt="a person waves",
        width=80,
        height=48,
        frames=9,
        steps=1,
    )[1]
    with torch.inference_mode():
        (frames,) = nodes.VAEDecode().decode(core_vae, latent)
    assert frames.shape == (9, 48, 80, 3)


@pytest.mark.parametrize("controlled", [False, True])
def test_one_reference_is_laid_out_as_by_cores_own_node(real_comfyui, condition, given, controlled):
    from comfy_extras.nodes_wan import WanVaceToVideo

    picture = (given["references"][:1, :, 0].permute(0, 2, 3, 1) + 1) / 2
    text = [[torch.zeros(1, 24, 32), {}]]
    # The original rounds a soft mask, core does not.
    mask = (given["source_mask"][0] > 0.5).float()
    control = (
        {"control_video": (given["source_frames"].permute(1, 2, 3, 0) + 1) / 2, "control_masks": mask}
        if controlled
        else {}
    )
    core = WanVaceToVideo.execute(
        text, text, StubVae(given), 64, 48, 9, 2, 0.7, **control, reference_image=picture
    ).args
    ours = condition(1, strength=0.7, batch_size=2, **control)
    assert core[2]["samples"].shape == ours[2]["samples"].shape and core[3] == ours[3]
    for name in ("vace_frames", "vace_mask"):
        assert relative(ours[0][0][1][name][0], core[0][0][1][name][0]) < 1e-5
    assert ours[0][0][1]["vace_strength"] == core[0][0][1]["vace_strength"]


def test_a_native_phantom_graph_generates_what_our_sampler_generates(run_node, core_wan, pack):
    import comfy.samplers
    import folder_paths
    from comfy.latent_formats import Wan21
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from comfy_extras.nodes_wan import WanPhantomSubjectToVideo

    from trainers.diffusion.sampling import denoise
    from trainers.diffusion.schedule import Schedule
    from trainers.lora.formats import read_lora, write_native
    from trainers.lora.inject import add_lora, load_lora_into, lora_parameters, remove_lora, to_lora
    from trainers.policies.base import ConditionBatch, Guidance
    from trainers.policies.load import load_policy, load_transformer
    from trainers.policies.phantom import PhantomPolicy

    ours = load_transformer(GOLDEN / "phantom" / "phantom_tiny.safetensors")
    add_lora(ours, 4, 8.0, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(ours).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    path = Path(folder_paths.get_folder_paths("loras")[0]) / "phantom.safetensors"
    write_native(to_lora(ours), path, {"policy": "phantom"})
    remove_lora(ours)
    load_lora_into(ours, read_lora(path))

    given = load_file(GOLDEN / "phantom" / "inputs.safetensors")
    noise, references = given["noise"][None, :, :3], given["reference_latents"]
    texts = [
        torch.nn.functional.pad(given[f"context_{n}"], (0, 0, 0, 24 - len(given[f"context_{n}"])))[None]
        for n in ("positive", "negative")
    ]
    timesteps = torch.tensor([999, 937, 833, 624])
    sigmas = torch.cat([timesteps / 1000, torch.zeros(1)])

    class Vae:
        """Gives the golden references one by one, not normalised, as core's VAE would."""

        def __init__(self):
            self.left = list(references.unbind(1))

        def encode(self, _):
            return Wan21().process_out(self.left.pop(0)[None, :, None])

    (patched,) = run_node("IdentityGRPOApplyLoRA", model=core_wan, lora="phantom.safetensors", strength=1.0)
    conditions = WanPhantomSubjectToVideo.execute(
        [[texts[0], {}]], [[texts[1], {}]], Vae(), 64, 48, 9, 1, torch.zeros(references.shape[1], 48, 64, 3)
    ).args
    guider = Guider_DualCFG(patched)
    guider.set_conds(*conditions[:3])
    guider.set_cfg(7.5, 5.0)
    # Core multiplies the noise by the first sigma.
    core = guider.sample(
        noise / sigmas[0], conditions[3]["samples"], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
    )

    world = load_policy("tinyworld-phantom")
    policy = PhantomPolicy(ours, world.vae.model, world.text.encoder, world.text.tokenizer)
    batch = ConditionBatch(*texts, references[None], references.shape[1])
    with torch.no_grad():
        ours_sampled = denoise(policy, batch, Schedule(sigmas, timesteps), Guidance(7.5, 5.0), noise)
    assert relative(Wan21().process_in(core), ours_sampled) < 1e-3
