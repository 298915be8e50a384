"""The nodes that judge a video: which people it keeps, and which of two keeps them better."""

from __future__ import annotations

import comfy.model_management as management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.config import RewardConfig
from ..trainers.errors import UserError
from ..trainers.pictures.boards import compare_board, score_board, verdict
from ..trainers.rewards.checkpoint import find_base, find_checkpoint
from ..trainers.rewards.geometry import VIDEO_MIN_PIXELS, frame_indices, resized
from ..trainers.rewards.identity import IdentityReward, preference_probabilities
from ..trainers.rewards.load import load_reward
from . import folders
from .memory import Managed
from .pictures import references_input, to_image, to_pixels, to_references
from .types import LazyReward, OnUse, Reward

CATEGORY = "Identity-GRPO/rewards"
AUTO, CPU = "auto", "CPU"
KEPT = "The people that the video should keep, one picture each."
DTYPES = [AUTO, "bfloat16", "float32"]
WORKING_BYTES = 2 * 2**30  # of the released 3-billion model on one clip; TinyWorld's needs far less


def fps_input() -> io.Input:
    return io.Float.Input(
        "fps",
        default=10.0,
        min=0.1,
        max=240.0,
        step=0.5,
        tooltip="Frames per second told to the reward. It is part of the score: keep it the same for videos that you compare. 10 is what "
        "the published reward was used with.",
    )


class LoadReward(io.ComfyNode):
    """An identity reward, as a model in ComfyUI's memory management."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadReward",
            display_name="Load Reward",
            category=CATEGORY,
            description="A learned judge of identity: how well the people of a video match their reference images. It is loaded when Score or "
            "Compare first needs it; Train loads it in its own process only.",
            search_aliases=["identity reward", "qwen", "reward model", "score model"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.reward_choices(),
                    tooltip=f"The built-in reward for TinyWorld, or a folder of models/{folders.REWARDS} as alibaba/identity-grpo publishes it.",
                ),
                io.Combo.Input(
                    "base_model",
                    options=folders.base_choices(),
                    tooltip=f"The Qwen2.5-VL folder that the checkpoint was trained on, in models/{folders.REWARDS}.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default=AUTO,
                    advanced=True,
                    tooltip="Precision. auto: bfloat16 on a GPU that knows it, float32 elsewhere; the head is float32 always.",
                ),
                io.Combo.Input(
                    "device",
                    options=[AUTO, CPU],
                    default=AUTO,
                    advanced=True,
                    tooltip="Where it computes. auto: ComfyUI's device, from which it moves away when the memory is needed.",
                ),
            ],
            outputs=[Reward.Output("reward", tooltip="The judge, for Score, Compare and Train.")],
        )

    @classmethod
    def validate_inputs(cls, checkpoint=None, base_model=None) -> bool | str:
        try:
            base = folders.base_source(base_model or folders.AS_CHECKPOINT)
            if checkpoint not in (None, folders.BUILT_IN):
                find_base(find_checkpoint(folders.reward_source(checkpoint)), base)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, checkpoint: str, base_model: str, dtype: str, device: str) -> io.NodeOutput:
        on_cpu = device == CPU or management.get_torch_device().type == "cpu"
        name = dtype if dtype != AUTO else "float32" if on_cpu or not management.should_use_bf16() else "bfloat16"
        config = RewardConfig(
            source=folders.reward_source(checkpoint), base_model=folders.base_source(base_model), dtype=name
        )
        return io.NodeOutput(
            LazyReward(config, OnUse(lambda: _load(config, on_cpu))), ui=ui.PreviewText(f"{checkpoint}, {name}")
        )


def _load(config: RewardConfig, on_cpu: bool) -> tuple[IdentityReward, Managed]:
    with torch.inference_mode(False):
        reward = load_reward(config, torch.device("cpu") if on_cpu else management.unet_offload_device())
    return reward, Managed(*(() if on_cpu else (reward.model,)))


class Score(io.ComfyNode):
    """One number for how well a video keeps its people, and the picture of what it was given for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOScore",
            display_name="Score Identity",
            category=CATEGORY,
            description="Scores a video against pictures of its people. The score has no zero: only differences mean something.",
            search_aliases=["identity score", "face similarity", "evaluate video", "reward"],
            inputs=[
                Reward.Input("reward", tooltip="The judge, from Load Reward."),
                io.Image.Input("images", tooltip="The frames of the video, in order."),
                references_input(KEPT),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="Written on the picture; the reward does not see it."
                ),
                fps_input(),
            ],
            outputs=[
                io.Float.Output(
                    "score", tooltip="Higher is better; comparable only for the same people and frame rate."
                ),
                io.Image.Output("picture", tooltip="The frames that the reward looked at, the people, and the score."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reward: LazyReward, images: Tensor, references: dict, prompt: str, fps: float) -> io.NodeOutput:
        people, clip = to_references(references), _clip(images, "images")
        (score,) = _scores(reward, [clip], people, fps)
        board = to_image(score_board(clip.numpy(), _seen(reward, clip), people, score, fps, prompt))
        shown = ui.PreviewImage(board, cls=cls).as_dict() | {"text": (f"identity score {score:.3f}",)}
        return io.NodeOutput(score, board, ui=shown)


class Compare(io.ComfyNode):
    """Two videos of the same people: which keeps them better, and how sure that is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOCompare",
            display_name="Compare Identity",
            category=CATEGORY,
            description="Which of two videos keeps its people better, with the probabilities of the reward's own model (Bradley-Terry with ties).",
            search_aliases=["a/b", "before after", "preference", "win rate", "compare videos"],
            inputs=[
                Reward.Input("reward", tooltip="The judge, from Load Reward."),
                io.Image.Input("video_a", tooltip="The frames of the first video."),
                io.Image.Input("video_b", tooltip="The frames of the second video, of the same people."),
                references_input(KEPT),
                fps_input(),
            ],
            outputs=[
                io.Float.Output("win", tooltip="Probability that B keeps them better than A."),
                io.Float.Output("tie", tooltip="Probability that one would call them equal."),
                io.Image.Output("picture", tooltip="Both videos one above the other, the people, and the verdict."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, reward: LazyReward, video_a: Tensor, video_b: Tensor, references: dict, fps: float
    ) -> io.NodeOutput:
        people, clips = to_references(references), (_clip(video_a, "video_a"), _clip(video_b, "video_b"))
        scores = _scores(reward, clips, people, fps)
        chances = tuple(float(p) for p in preference_probabilities(*scores))
        seen = tuple(_seen(reward, clip) for clip in clips)
        board = to_image(compare_board(tuple(c.numpy() for c in clips), seen, people, scores, chances))
        shown = ui.PreviewImage(board, cls=cls).as_dict() | {"text": (verdict(chances),)}
        return io.NodeOutput(chances[2], chances[1], board, ui=shown)


def _clip(images: Tensor, name: str) -> Tensor:
    """The frames of the input `name`, uint8. Raises UserError for a video that the reward cannot look at."""
    if not len(images):
        raise UserError(f"`{name}` has no frame; connect a video")
    try:
        resized(*images.shape[1:3], VIDEO_MIN_PIXELS)
    except ValueError as error:
        raise UserError(f"`{name}`: {error}; crop it") from None
    return to_pixels(images)


def _scores(lazy: LazyReward, clips, people, fps: float) -> tuple[float, ...]:
    """The clips' scores. Raises UserError that says what to do when memory runs out."""
    try:
        model, moves = lazy.reward.model, bool(lazy.managed.modules)
        # Named, so that Cancel ends it on the CPU too, where nothing is managed.
        with lazy.managed.use(model, working_bytes=WORKING_BYTES if moves else 0):
            return tuple(lazy.reward.score(list(clips), [people] * len(clips), fps, batch_size=1).tolist())
    except management.OOM_EXCEPTION:
        reason = "the reward ran out of memory; load it with device `CPU`, or give smaller videos"
    management.unload_all_models()
    raise UserError(reason)


def _seen(lazy: LazyReward, clip: Tensor) -> list[int]:
    """Places of the frames that the reward looks at."""
    frames = lazy.reward.collator.frames
    return list(range(len(clip))) if len(clip) == frames else frame_indices(len(clip), frames)


NODES = [LoadReward, Score, Compare]
