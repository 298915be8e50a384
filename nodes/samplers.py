"""The nodes that sample videos."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..trainers.config import BUILT_IN, WAN_NEGATIVE_PROMPT, PolicyKind
from ..trainers.diffusion.solvers import SOLVERS, SolverName
from ..trainers.policies.base import Guidance, VideoSize
from ..trainers.prompts import PromptItem
from .inputs import clean, clean_prompt, prompt_problem, require_choice, require_range
from .pictures import references_input, to_references, to_video
from .sampling import (
    Sampling,
    check_kind,
    check_size,
    frames_input,
    generate,
    side_input,
    to_control_clip,
    to_control_mask,
)
from .types import LazyPolicy, WanPolicyType

CATEGORY = "Identity-GRPO/samplers"
EULER = "euler"
STEPS, SCALE, SHIFT, SEED = (1, 200), (1.0, 30.0), (0.1, 50.0), (0, 2**64 - 1)
ALIASES = ["wan", "subject to video", "reference to video", "multiple people", "person", "face", "identity"]
WAN_FPS, TINYWORLD_FPS = 16.0, 10.0
MOST_PEOPLE = {"vace": 8, "phantom": 4}


def sampler_inputs(most_people: int, guidance: list[io.Input], shift: io.Input) -> list[io.Input]:
    """The inputs of every sampler, with the model's own `guidance` scales and `shift`."""
    return [
        WanPolicyType.Input("policy", tooltip="The video model, from Load Model or Load LoRA."),
        references_input("One picture per person, in the order in which the prompt mentions them.", most_people),
        io.String.Input(
            "prompt", multiline=True, tooltip="What happens in the video, with a few words on how each person looks."
        ),
        io.String.Input(
            "negative",
            multiline=True,
            default=WAN_NEGATIVE_PROMPT,
            tooltip="What the video should not show. The default is Wan's own; leave it empty for TinyWorld.",
        ),
        side_input("width", 832, "Width of the video in pixels, a multiple of 16: 832 for Wan 1.3B, 80 for TinyWorld."),
        side_input(
            "height", 480, "Height of the video in pixels, a multiple of 16: 480 for Wan 1.3B, 48 for TinyWorld."
        ),
        frames_input(
            "frames", "Number of frames, 4n+1: 81 for Wan (5 seconds at 16 frames a second), 9 for TinyWorld."
        ),
        io.Int.Input(
            "steps",
            default=30,
            min=STEPS[0],
            max=STEPS[1],
            tooltip="Denoising steps: 30 for Wan, 8 for TinyWorld. More are slower and a little finer.",
        ),
        *guidance,
        shift,
        io.Int.Input(
            "seed",
            default=0,
            min=SEED[0],
            max=SEED[1],
            control_after_generate=True,
            tooltip="Seed of the noise: the same seed and settings give the same video.",
        ),
        io.Combo.Input(
            "solver",
            options=list(SOLVERS),
            default=EULER,
            optional=True,
            advanced=True,
            tooltip="The ODE solver. euler: as the evaluations of a run. unipc: as the authors of VACE and Phantom; as "
            "exact with half the steps at moderate scales, worse with few steps at strong ones.",
        ),
    ]


def scale_input(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=SCALE[0], max=SCALE[1], step=0.1, tooltip=tooltip)


def shift_input(default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        "shift",
        default=default,
        min=SHIFT[0],
        max=SHIFT[1],
        step=0.1,
        advanced=True,
        tooltip=f"Flow shift of the noise schedule: higher values spend more steps on the layout. {tooltip}",
    )


def outputs() -> list[io.Output]:
    return [
        io.Image.Output("images", tooltip="The frames of the video."),
        io.Latent.Output(
            "latent", tooltip="The latents of the video without the references, as ComfyUI's VAE Decode expects them."
        ),
        io.Video.Output("video", tooltip="The video at the model's frame rate, for Save Video."),
        io.Float.Output("fps", tooltip="The model's frame rate: 16 for Wan, 10 for TinyWorld."),
    ]


def sample(
    kind: PolicyKind,
    scales: dict[str, float],
    policy: LazyPolicy,
    references: dict,
    prompt: str,
    negative: str,
    width: int,
    height: int,
    frames: int,
    steps: int,
    shift: float,
    seed: int,
    solver: SolverName = EULER,
    control_video: Tensor | None = None,
    control_mask: Tensor | None = None,
) -> io.NodeOutput:
    """The outputs of a sampler for policies of `kind`: every input is checked before the model loads.

    `scales`: the guidance scales by the names of their inputs, in the order of `Guidance`.
    """
    check_kind(policy, kind)
    require_choice("solver", solver, list(SOLVERS))
    numbers = {"steps": (steps, STEPS), "shift": (shift, SHIFT), "seed": (seed, SEED)}
    for name, (value, limits) in (numbers | {name: (value, SCALE) for name, value in scales.items()}).items():
        require_range(name, value, limits)
    size = VideoSize(height, width, frames)
    check_size(policy, size)
    item = PromptItem("sample", clean_prompt(prompt), to_references(references, MOST_PEOPLE[kind]), clean(negative))
    control = {}
    if control_video is not None:
        control["control_video"] = to_control_clip(control_video, size)
    if control_mask is not None:
        control["control_mask"] = to_control_mask(control_mask, size)
    sampling = Sampling(size, steps, shift, Guidance(*scales.values()), seed, solver)
    images, latent = generate(policy, sampling, item, **control)
    fps = TINYWORLD_FPS if policy.config.source in BUILT_IN else WAN_FPS
    return io.NodeOutput(images, latent, to_video(images, fps), fps)


class Sampler(io.ComfyNode):
    """What the samplers share."""

    @classmethod
    def validate_inputs(cls, prompt=None, references=None) -> bool | str:
        # Core repeats the answer for every input that is named here, so only one is. It passes groups of growing slots
        # whether they are named or not.
        return prompt_problem(prompt) or True


class VACESampler(Sampler):
    """VACE with as many people as there are pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        cfg = scale_input("cfg", 4.5, "How strongly the prompt is followed; 1 halves the time and ignores `negative`.")
        return io.Schema(
            node_id="IdentityGRPOVACESampler",
            display_name="VACE Sampler",
            category=CATEGORY,
            description="Generates a video of the people in the reference pictures with a VACE model.",
            search_aliases=["vace", *ALIASES],
            inputs=[
                *sampler_inputs(
                    MOST_PEOPLE["vace"], [cfg], shift_input(3.0, "3 is what the recipes of this pack train VACE with.")
                ),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="A clip to edit or to follow (poses, depth), resized to the video; missing frames are "
                    "grey.",
                ),
                io.Mask.Input(
                    "control_mask",
                    optional=True,
                    tooltip="White: generate; black: keep `control_video`. One mask serves all frames.",
                ),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, cfg: float, **inputs) -> io.NodeOutput:
        return sample("vace", {"cfg": cfg}, **inputs)


class PhantomSampler(Sampler):
    """Phantom with up to four people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scales = [
            scale_input(
                "text_cfg",
                7.5,
                "How strongly the prompt is followed; equal to `image_cfg` it saves a third of the time.",
            ),
            scale_input(
                "image_cfg",
                5.0,
                "How strongly the people in the pictures are kept; with both scales at 1 a step takes a third of the "
                "time.",
            ),
        ]
        return io.Schema(
            node_id="IdentityGRPOPhantomSampler",
            display_name="Phantom Sampler",
            category=CATEGORY,
            description="Generates a video of the people in the reference pictures with a Phantom model.",
            search_aliases=["phantom", *ALIASES],
            inputs=sampler_inputs(MOST_PEOPLE["phantom"], scales, shift_input(5.0, "5 is what Phantom's authors use.")),
            outputs=outputs(),
        )

    @classmethod
    def execute(cls, text_cfg: float, image_cfg: float, **inputs) -> io.NodeOutput:
        return sample("phantom", {"text_cfg": text_cfg, "image_cfg": image_cfg}, **inputs)


NODES = [VACESampler, PhantomSampler]
