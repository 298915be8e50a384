"""The nodes that draw videos."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..trainers.diffusion.solvers import SOLVERS, SolverName
from ..trainers.policies.base import Guidance, VideoSize
from ..trainers.prompts import PromptItem
from .pictures import references_input, to_references
from .sampling import LARGEST, LONGEST, STEP, Sampling, check_kind, draw, size_problem, to_control_clip, to_control_mask
from .types import LazyPolicy, WanPolicy

CATEGORY = "Identity-GRPO/samplers"
EULER = "euler"


def common_inputs(most_references: int, guidance: list[io.Input], shift: io.Input) -> list[io.Input]:
    """What every sampler asks for, with the model's own `guidance` scales and `shift`."""
    return [
        WanPolicy.Input("policy", tooltip="The video model, from Load Model or Load LoRA."),
        references_input(
            "One picture per person, in the order in which the prompt speaks of them.", most=most_references
        ),
        io.String.Input(
            "prompt", multiline=True, tooltip="What happens in the video, with a few words on how each person looks."
        ),
        io.String.Input(
            "negative", multiline=True, default="", tooltip="What the video should not show; may stay empty."
        ),
        io.Int.Input(
            "width",
            default=832,
            min=STEP,
            max=LARGEST,
            step=STEP,
            tooltip="Of the video in pixels, a multiple of 16. Wan 1.3B knows 832x480; TinyWorld draws 80x48.",
        ),
        io.Int.Input(
            "height", default=480, min=STEP, max=LARGEST, step=STEP, tooltip="Of the video in pixels, a multiple of 16."
        ),
        io.Int.Input(
            "frames",
            default=81,
            min=1,
            max=LONGEST,
            step=4,
            tooltip="Number of frames, 4n+1. Wan knows 81 (5 seconds at 16 frames a second); TinyWorld draws 9.",
        ),
        io.Int.Input(
            "steps", default=30, min=1, max=200, tooltip="Denoising steps; more are slower and a little finer."
        ),
        *guidance,
        shift,
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Of the noise: the same seed and settings give the same video.",
        ),
    ]


def scale(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=1.0, max=30.0, step=0.1, tooltip=tooltip)


def flow_shift(default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        "shift",
        default=default,
        min=0.1,
        max=50.0,
        step=0.1,
        tooltip=f"Flow shift of the noise schedule: higher spends more steps on the layout of the picture. {tooltip}",
    )


def solver_input() -> io.Input:
    return io.Combo.Input(
        "solver",
        options=list(SOLVERS),
        default=EULER,
        optional=True,
        advanced=True,
        tooltip="How each step is taken. euler: as evaluations of a run are drawn. unipc: as the authors of VACE and Phantom sample; "
        "as exact with half the steps at moderate scales, worse with few steps at strong ones.",
    )


def outputs() -> list[io.Output]:
    return [
        io.Image.Output("images", tooltip="The frames of the video."),
        io.Latent.Output(
            "latent", tooltip="Its latents, without the references, as ComfyUI's VAE Decode expects them."
        ),
    ]


class VACESampler(io.ComfyNode):
    """VACE with as many people as there are pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        cfg = scale("cfg", 4.5, "How strongly the prompt is followed; 1 takes half the time and ignores `negative`.")
        shift = flow_shift(3.0, "3 is what models are trained with here.")
        return io.Schema(
            node_id="IdentityGRPOVACESampler",
            display_name="VACE Sampler (several people)",
            category=CATEGORY,
            description="Draws a video of the people in the reference pictures with a VACE model.",
            search_aliases=["vace", "wan", "subject to video", "reference to video", "multiple people", "identity"],
            inputs=[
                *common_inputs(8, [cfg], shift),
                solver_input(),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="A clip to edit or to follow (poses, depth); resized to the video, then grey if too short.",
                ),
                io.Mask.Input(
                    "control_mask",
                    optional=True,
                    tooltip="White: draw anew; black: keep `control_video`. One mask serves all frames.",
                ),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, frames=None, references=None) -> bool | str:
        # ComfyUI hands over a group of growing slots whether it is asked for or not.
        return size_problem(width, height, frames) or True

    @classmethod
    def execute(
        cls,
        policy: LazyPolicy,
        references: dict,
        prompt: str,
        negative: str,
        width: int,
        height: int,
        frames: int,
        steps: int,
        cfg: float,
        shift: float,
        seed: int,
        solver: SolverName = EULER,
        control_video: Tensor | None = None,
        control_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        check_kind(policy, "vace")
        size = VideoSize(height, width, frames)
        item = PromptItem("sample", prompt, to_references(references), negative)
        return io.NodeOutput(
            *draw(
                policy,
                Sampling(size, steps, shift, Guidance(cfg), seed, solver),
                item,
                control_video=None if control_video is None else to_control_clip(control_video, size),
                control_mask=None if control_mask is None else to_control_mask(control_mask, size),
            )
        )


class PhantomSampler(io.ComfyNode):
    """Phantom with up to four people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scales = [
            scale(
                "text_cfg",
                7.5,
                "How strongly the prompt is followed. Equal to `image_cfg` it takes two thirds of the time.",
            ),
            scale(
                "image_cfg",
                5.0,
                "How strongly the people in the pictures are kept. 1 with `text_cfg` 1 takes a third of the time.",
            ),
        ]
        shift = flow_shift(5.0, "5 is what Phantom's authors use.")
        return io.Schema(
            node_id="IdentityGRPOPhantomSampler",
            display_name="Phantom Sampler (several people)",
            category=CATEGORY,
            description="Draws a video of the people in the reference pictures with a Phantom model.",
            search_aliases=["phantom", "wan", "subject to video", "reference to video", "multiple people", "identity"],
            inputs=[*common_inputs(4, scales, shift), solver_input()],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, width=None, height=None, frames=None, references=None) -> bool | str:
        # ComfyUI hands over a group of growing slots whether it is asked for or not.
        return size_problem(width, height, frames) or True

    @classmethod
    def execute(
        cls,
        policy: LazyPolicy,
        references: dict,
        prompt: str,
        negative: str,
        width: int,
        height: int,
        frames: int,
        steps: int,
        text_cfg: float,
        image_cfg: float,
        shift: float,
        seed: int,
        solver: SolverName = EULER,
    ) -> io.NodeOutput:
        check_kind(policy, "phantom")
        size = VideoSize(height, width, frames)
        item = PromptItem("sample", prompt, to_references(references), negative)
        sampling = Sampling(size, steps, shift, Guidance(text_cfg, image_cfg), seed, solver)
        return io.NodeOutput(*draw(policy, sampling, item))


NODES = [VACESampler, PhantomSampler]
