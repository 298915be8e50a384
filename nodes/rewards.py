"""The nodes that score how well a video preserves the identities of its reference images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import comfy.model_management as management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.config import RewardConfig
from ..trainers.errors import UserError
from ..trainers.modelfiles.inspection import inspect_file
from ..trainers.pictures.boards import compare_board, score_board, verdict
from ..trainers.rewards.folder import find_checkpoint, find_reward
from ..trainers.rewards.geometry import VIDEO_MIN_PIXELS, frame_indices, resized
from ..trainers.rewards.identity import IdentityReward, preference_probabilities
from ..trainers.rewards.load import load_reward
from ..trainers.rewards.scoring import short_clip_warning
from . import folders
from .inputs import clean, fps_input, require_choice, require_given
from .memory import Managed
from .pictures import references_input, to_image, to_pixels, to_references
from .types import LazyReward, OnUse, RewardType

CATEGORY = "Identity-GRPO/rewards"
AUTO, CPU = "auto", "CPU"
DTYPES, DEVICES = [AUTO, "bfloat16", "float32"], [AUTO, CPU]
LOADER = "Load Reward"
REWARD = f"The identity reward, from {LOADER}."
PEOPLE = "The people that the video should show, one picture each."
FPS_IN_SCORE = (
    "Frames per second of the video. It enters the score: use the same for videos that you compare; the published "
    "reward was used with 10."
)
T = TypeVar("T")
WORKING_BYTES = 2 * 2**30  # of the released 3-billion model on one clip; TinyWorld's needs far less


class LoadReward(io.ComfyNode):
    """An identity reward, as a model in ComfyUI's memory management."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadReward",
            display_name="Load Reward",
            category=CATEGORY,
            description="A learned reward: how well the people of a video match their reference images. It loads when "
            "Score Identity or Compare Identity first needs it; Train loads it in its own process only.",
            search_aliases=["identity reward", "qwen", "reward model", "score model", "grpo", "person", "face"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.reward_choices(),
                    tooltip=f"A folder of models/{folders.REWARDS} as alibaba/identity-grpo publishes it, a "
                    "reward that Train Reward has made, or the built-in one for TinyWorld.",
                ),
                io.Combo.Input(
                    "base_model",
                    options=folders.base_choices(),
                    tooltip="The Qwen2.5-VL that the checkpoint was trained on: a folder in "
                    f"models/{folders.REWARDS}, or a file of models/text_encoders; `{folders.AS_CHECKPOINT}` uses the "
                    "one that it names.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default=AUTO,
                    advanced=True,
                    tooltip="Precision. auto: bfloat16 on a GPU that supports it, float32 elsewhere; the last layer is "
                    "always float32.",
                ),
                io.Combo.Input(
                    "device",
                    options=DEVICES,
                    default=AUTO,
                    advanced=True,
                    tooltip="Where it computes. auto: ComfyUI's device, which it leaves when others need the memory.",
                ),
            ],
            outputs=[RewardType.Output("reward", tooltip="For Score Identity, Compare Identity and Train.")],
        )

    @classmethod
    def validate_inputs(cls, checkpoint=None) -> bool | str:
        # Core repeats the answer for every input that is named here, so only one is.
        try:
            if checkpoint not in (None, folders.BUILT_IN):
                find_checkpoint(folders.reward_source(checkpoint))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, checkpoint: str, base_model: str, dtype: str, device: str) -> io.NodeOutput:
        require_choice("dtype", dtype, DTYPES)
        require_choice("device", device, DEVICES)
        on_cpu = device == CPU or management.get_torch_device().type == "cpu"
        name = dtype if dtype != AUTO else "float32" if on_cpu or not management.should_use_bf16() else "bfloat16"
        config = RewardConfig(
            source=folders.reward_source(checkpoint), base_model=folders.base_source(base_model), dtype=name
        )
        find_reward(config)
        text = f"{checkpoint}, {name}"
        if checkpoint != folders.BUILT_IN:
            text += f"\nFile: {inspect_file(config.source)}"
        return io.NodeOutput(LazyReward(config, OnUse(lambda: _load(config, on_cpu))), ui=ui.PreviewText(text))


def _load(config: RewardConfig, on_cpu: bool) -> tuple[IdentityReward, Managed]:
    with torch.inference_mode(False):
        reward = load_reward(config, torch.device("cpu") if on_cpu else management.unet_offload_device())
    return reward, Managed(*(() if on_cpu else (reward.model,)))


class Score(io.ComfyNode):
    """The identity score of a video, with a picture of the frames and people that it was computed from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOScore",
            display_name="Score Identity",
            category=CATEGORY,
            description="Scores how well a video preserves the identities of its reference images. The score has no "
            "zero: only differences between scores mean something.",
            search_aliases=["identity score", "face similarity", "person", "evaluate video", "reward"],
            inputs=[
                RewardType.Input("reward", tooltip=REWARD),
                io.Image.Input("images", tooltip="The frames of the video, in order."),
                references_input(PEOPLE),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="A text for the picture; the reward does not read it.",
                ),
                fps_input(FPS_IN_SCORE, default=10.0),
            ],
            outputs=[
                io.Float.Output(
                    "score", tooltip="Higher is better; comparable only for the same people and frame rate."
                ),
                io.Image.Output("picture", tooltip="The frames that the reward read, the people, and the score."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reward: LazyReward, images: Tensor, references: dict, prompt: str, fps: float) -> io.NodeOutput:
        require_given("reward", reward, LazyReward, LOADER)
        people, clip = to_references(references), _clip(images, "images")
        (score,) = score_clips(reward, {"images": clip}, people, fps)
        frames = _frames_read(reward, clip)
        board = to_image(score_board(clip.numpy(), frames, people, score, fps, clean(prompt)))
        shown = ui.PreviewImage(board, cls=cls).as_dict() | _result(
            f"identity score {score:.3f}", _warning(reward, {"images": clip}), score=score
        )
        return io.NodeOutput(score, board, ui=shown)


class Compare(io.ComfyNode):
    """Which of two videos preserves the identities of its reference images better, with probabilities."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOCompare",
            display_name="Compare Identity",
            category=CATEGORY,
            description="Which of two videos preserves the identities of its reference images better, with the "
            "probabilities of the reward's own model (Bradley-Terry with ties).",
            search_aliases=[
                "a/b",
                "before after",
                "preference",
                "win rate",
                "compare videos",
                "identity",
                "person",
                "face",
            ],
            inputs=[
                RewardType.Input("reward", tooltip=REWARD),
                io.Image.Input("video_a", tooltip="The frames of the first video."),
                io.Image.Input("video_b", tooltip="The frames of the second video, of the same people."),
                references_input(PEOPLE),
                fps_input(FPS_IN_SCORE, default=10.0),
            ],
            outputs=[
                io.Float.Output("win", tooltip="Probability that B is better than A."),
                io.Float.Output("tie", tooltip="Probability that the two are equally good."),
                io.Image.Output("picture", tooltip="Both videos one above the other, the people, and the result."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, reward: LazyReward, video_a: Tensor, video_b: Tensor, references: dict, fps: float
    ) -> io.NodeOutput:
        require_given("reward", reward, LazyReward, LOADER)
        people = to_references(references)
        clips = {name: _clip(video, name) for name, video in (("video_a", video_a), ("video_b", video_b))}
        scores = score_clips(reward, clips, people, fps)
        chances = tuple(float(p) for p in preference_probabilities(*scores))
        frames = tuple(_frames_read(reward, clip) for clip in clips.values())
        board = to_image(compare_board(tuple(c.numpy() for c in clips.values()), frames, people, scores, chances))
        numbers = {"win": chances[2], "tie": chances[1], "score_a": scores[0], "score_b": scores[1]}
        shown = ui.PreviewImage(board, cls=cls).as_dict() | _result(
            verdict(chances), _warning(reward, clips), **numbers
        )
        return io.NodeOutput(chances[2], chances[1], board, ui=shown)


def _result(text: str, warning: str, **numbers: float) -> dict:
    """The text on the node, and the numbers for programs that read `/history`."""
    return {"text": (text + (f"\nWarning: {warning}" if warning else ""),), "identity_grpo": (numbers,)}


def _warning(reward: LazyReward, clips: dict[str, Tensor]) -> str:
    """About clips, by the inputs' names, that are shorter than what the reward reads."""
    return short_clip_warning({f"`{name}`": clip for name, clip in clips.items()}, reward.reward.collator.frames)


def _clip(images: Tensor, name: str) -> Tensor:
    """The frames of the input `name`: uint8 [F, H, W, 3]. Raises UserError for a video that the reward cannot read."""
    clip = to_pixels(images, name)
    if not len(clip):
        raise UserError(f"`{name}` has no frame; connect a video")
    try:
        resized(*clip.shape[1:3], VIDEO_MIN_PIXELS)
    except UserError as error:
        raise UserError(f"`{name}`: {error}") from None
    return clip


def score_clips(lazy: LazyReward, clips: dict[str, Tensor], people, fps: float) -> tuple[float, ...]:
    """The scores of clips by the inputs' names. Raises UserError when memory runs out, or a score is not finite."""
    names = [f"`{name}`" for name in clips]

    def score(reward: IdentityReward) -> tuple[float, ...]:
        found = reward.score(list(clips.values()), [people] * len(clips), fps, batch_size=1, names=names)
        return tuple(found.tolist())

    return with_reward(lazy, score)


def with_reward(lazy: LazyReward, work: Callable[[IdentityReward], T]) -> T:
    """What `work` returns for the loaded reward, one clip at a time. Raises UserError when memory runs out."""
    try:
        model, moves = lazy.reward.model, bool(lazy.managed.modules)
        # The model is passed explicitly, so that Cancel works on the CPU too, where no module is managed.
        with lazy.managed.use(model, working_bytes=WORKING_BYTES if moves else 0):
            return work(lazy.reward)
    except management.OOM_EXCEPTION:
        reason = "the reward ran out of memory; load it with device `CPU`, or give smaller videos"
    management.unload_all_models()
    raise UserError(reason)


def _frames_read(lazy: LazyReward, clip: Tensor) -> list[int]:
    """Indices of the frames that the reward reads."""
    frames = lazy.reward.collator.frames
    return list(range(len(clip))) if len(clip) == frames else frame_indices(len(clip), frames)


NODES = [LoadReward, Score, Compare]
