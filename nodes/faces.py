"""The nodes that look at faces: who is who in a video, and which of several videos shows its people best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import comfy.model_management as management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.errors import UserError
from ..trainers.faces.board import face_board, ranking_board
from ..trainers.faces.ranking import best_first
from ..trainers.faces.report import FaceReport, People, find_people, report
from ..trainers.faces.text import headline_text, notes, person_lines
from ..trainers.faces.users import BUILT_IN, load_recogniser
from ..trainers.faces.weights import release_networks
from .face_networks import face_networks_input
from .inputs import FPS, fps_input, require_choice, require_range
from .pictures import named_references, references_input, to_image, to_pixels, to_video
from .rewards import score_clips
from .types import FaceFiles, LazyReward, RewardType

CATEGORY = "Identity-GRPO/faces"
PEOPLE = "The people that the video should show, one picture each; of a picture with several faces the largest counts."
NOT_JUDGED = -1.0
BY_FACES, BY_REWARD, BY_BOTH = "faces", "reward", "both"
RANKINGS = [BY_FACES, BY_REWARD, BY_BOTH]
MOST_CLIPS, MOST_PARTS = 16, 64


class FaceReportNode(io.ComfyNode):
    """The face report of a video, with a picture of who is who."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOFaceReport",
            display_name="Face Report",
            category=CATEGORY,
            description="Shows whether the people of a video are those of the reference images: who is seen in which "
            "frame, swaps, missing people, duplicates and strangers. It compares faces and is trained on no reward.",
            search_aliases=[
                "face similarity",
                "identity check",
                "person",
                "who is who",
                "face recognition",
                "evaluate video",
            ],
            inputs=[
                io.Image.Input("images", tooltip="The frames of the video, in order."),
                references_input(PEOPLE),
                fps_input("Frames per second of the video; it gives the worst second and the times in the picture."),
                face_networks_input(),
            ],
            outputs=[
                io.Float.Output(
                    "score",
                    tooltip="0 to 1: the share of the clip in which the right people are seen; -1 when the faces are "
                    "too small or blurred to judge.",
                ),
                io.String.Output("people", tooltip="The numbers of each person, one line each, and the alarms."),
                io.Image.Output("picture", tooltip="Who is who in some frames, and each person's faces over time."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, references: dict, fps: float, face_networks: FaceFiles | None = None
    ) -> io.NodeOutput:
        require_range("fps", fps, FPS)
        people, clip = named_references(references), _clip(images, "images")
        with on_networks() as device:
            (found,) = report_videos([clip], find(people, device, face_networks), fps, device)
        board = to_image(face_board(clip.numpy(), found))
        text = "\n".join([headline_text(found), *person_lines(found), *notes(found)])
        shown = ui.PreviewImage(board, cls=cls).as_dict() | {"text": (text,), "identity_grpo": (found.numbers(),)}
        return io.NodeOutput(number(found.headline), text, board, ui=shown)


class KeepBest(io.ComfyNode):
    """The best of several videos of the same people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        clip = io.Image.Input("clip", tooltip="The frames of a video, or several videos of equal length in a row.")
        return io.Schema(
            node_id="IdentityGRPOKeepBest",
            display_name="Keep Best",
            category=CATEGORY,
            description="Keeps the video that shows its people best, of several of the same people: by the face "
            "report, by the reward, or by both.",
            search_aliases=[
                "best of n",
                "select video",
                "rank videos",
                "pick best",
                "choose",
                "identity",
                "person",
                "face",
            ],
            inputs=[
                io.Autogrow.Input(
                    "clips",
                    template=io.Autogrow.TemplatePrefix(clip, prefix="clip", min=1, max=MOST_CLIPS),
                    tooltip="The videos, of the same people and frame rate.",
                ),
                references_input(PEOPLE),
                io.Int.Input(
                    "videos_per_clip",
                    default=1,
                    min=1,
                    max=MOST_PARTS,
                    tooltip="How many videos of equal length each connected clip holds, one after the other.",
                ),
                io.Combo.Input(
                    "rank_by",
                    options=RANKINGS,
                    default=BY_FACES,
                    tooltip="faces: the score of Face Report. reward: the identity score. both: the mean of the two "
                    "ranks.",
                ),
                fps_input("Frames per second of the videos; it enters the reward's score."),
                RewardType.Input(
                    "reward", optional=True, tooltip="The identity reward, from Load Reward; needed by reward and both."
                ),
                face_networks_input(),
            ],
            outputs=[
                io.Image.Output("best", tooltip="The frames of the best video."),
                io.Int.Output("index", tooltip="Which video it is, from 1, in the order in which they are connected."),
                io.String.Output("ranking", tooltip="All videos, best first, with their numbers."),
                io.Image.Output("picture", tooltip="Frames of all videos, best first."),
                io.Video.Output("video", tooltip="The best video at `fps` frames per second, for Save Video."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        clips: dict,
        references: dict,
        videos_per_clip: int,
        rank_by: str,
        fps: float,
        reward: LazyReward | None = None,
        face_networks: FaceFiles | None = None,
    ) -> io.NodeOutput:
        require_choice("rank_by", rank_by, RANKINGS)
        require_range("fps", fps, FPS)
        require_range("videos_per_clip", videos_per_clip, (1, MOST_PARTS))
        if rank_by != BY_FACES and reward is None:
            raise UserError(f"rank_by `{rank_by}` needs a reward; connect Load Reward to `reward`, or choose `faces`")
        people = named_references(references)
        sources, videos = _videos(clips, videos_per_clip)
        faces, scores, texts = None, None, [[] for _ in videos]
        if rank_by != BY_REWARD:
            with on_networks() as device:
                reports = report_videos(videos, find(people, device, face_networks), fps, device)
            faces = [found.headline for found in reports]
            for text, found in zip(texts, reports, strict=True):
                text.append(headline_text(found))
        if rank_by != BY_FACES:
            pictures = tuple(picture.numpy() for picture in people.values())
            scores = list(score_clips(reward, _named(videos), pictures, fps))
            for text, score in zip(texts, scores, strict=True):
                text.append(f"reward {score:.3f}")
        order = best_first(faces, scores)
        lines = [", ".join(text) for text in texts]
        ranking = "\n".join(f"{place}. video {index + 1}: {lines[index]}" for place, index in enumerate(order, 1))
        board = to_image(ranking_board([video.numpy() for video in videos], order, lines))
        numbers: dict = {"order": [index + 1 for index in order]}
        numbers |= {"faces": [number(headline) for headline in faces]} if faces else {}
        numbers |= {"reward": scores} if scores else {}
        shown = ui.PreviewImage(board, cls=cls).as_dict() | {"text": (ranking,), "identity_grpo": (numbers,)}
        best = sources[order[0]]
        return io.NodeOutput(best, order[0] + 1, ranking, board, to_video(best, fps), ui=shown)


def _clip(images: Tensor, name: str) -> Tensor:
    clip = to_pixels(images, name)
    if not len(clip):
        raise UserError(f"`{name}` has no frame; connect a video")
    return clip


def _videos(clips: dict, parts: int) -> tuple[list[Tensor], list[Tensor]]:
    """Each video as it came in (IMAGE), and as uint8 [F, H, W, 3]. Raises UserError when a clip cannot be split."""
    sources, videos = [], []
    for slot, images in clips.items():
        if images is None:
            continue
        pixels = _clip(images, f"clips.{slot}")
        if len(pixels) % parts:
            raise UserError(
                f"`clips.{slot}` has {len(pixels)} frames, which are not {parts} videos of equal length; change "
                "videos_per_clip"
            )
        sources += images.chunk(parts)
        videos += pixels.chunk(parts)
    if not videos:
        raise UserError("no clip is connected; connect the videos to `clips`")
    return sources, videos


def _named(videos: list[Tensor]) -> dict[str, Tensor]:
    return {f"video {number}": video for number, video in enumerate(videos, 1)}


def number(headline: float | None) -> float:
    """The headline as an output: NOT_JUDGED for none."""
    return NOT_JUDGED if headline is None else headline


def find(pictures: Mapping[str, Tensor], device: torch.device, files: FaceFiles | None) -> People:
    """The people of reference images by their names, by the networks of this pack or those of `files`."""
    recogniser = load_recogniser(files.detector, files.embedder) if files else BUILT_IN
    return find_people([picture.numpy() for picture in pictures.values()], device, list(pictures), recogniser)


def report_videos(videos: list[Tensor], people: People, fps: float, device: torch.device) -> list[FaceReport]:
    """The reports of videos of the same people, with progress; Cancel ends it between two batches of frames."""
    bar, done, reports = comfy.utils.ProgressBar(sum(map(len, videos))), 0, []

    def progress(frames: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done + frames)

    for video in videos:
        reports.append(report(video, people, fps, device, progress))
        done += len(video)
    return reports


@contextmanager
def on_networks() -> Iterator[torch.device]:
    """ComfyUI's device for a block of work, after which nothing of the networks stays on it.

    Raises UserError when memory runs out.
    """
    device = management.get_torch_device()
    try:
        yield device
    except management.OOM_EXCEPTION:
        raise UserError(
            "the face networks ran out of memory; free some of the GPU's, or give a smaller video"
        ) from None
    finally:
        if device.type != "cpu":
            release_networks()


NODES = [FaceReportNode, KeepBest]
