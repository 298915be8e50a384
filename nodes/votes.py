"""The node that collects pairs of videos for votes; the voting itself is a dialog of the editor (web/vote.js)."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..trainers.errors import UserError, shown
from ..trainers.preference.folder import PairFolder
from ..trainers.runs.clip_pairs import clip_pairs
from ..trainers.runs.folder import RunFolder
from .inputs import FPS, clean, fps_input, require_range
from .pictures import to_pixels, to_references
from .types import TrainingRunType

CATEGORY = "Identity-GRPO/rewards"
FOLDER = "identity_grpo_pairs"
MOST_CLIPS = 8
LONGEST_NAME = 60


def pairs_root() -> Path:
    """Where folders of pairs lie: in ComfyUI's output folder, where users find them for training."""
    return Path(folder_paths.get_output_directory()) / FOLDER


def pair_folder(name: str) -> PairFolder:
    """The folder of pairs behind a name of a widget or a request: lower-case letters of any script, digits and dashes.

    Raises UserError for a name without any of these.
    """
    plain = re.sub(r"[\W_]+", "-", str(name).lower())[:LONGEST_NAME].strip("-")
    if not plain:
        raise UserError(f"the name `{shown(name)}` has no letter or digit; give the votes a name")
    return PairFolder(pairs_root() / plain)


class Vote(io.ComfyNode):
    """Adds pairs of videos to a folder; its button opens the dialog in which people compare them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        clip = io.Image.Input("clip", tooltip="The frames of a video.")
        person = io.Image.Input("reference", tooltip="A picture of one person; a batch is that many people.")
        return io.Schema(
            node_id="IdentityGRPOVote",
            display_name="Vote on Videos",
            category=CATEGORY,
            description="Collects pairs of videos of the same people, and lets you vote which one keeps its people "
            "better. Train Reward learns from the votes.",
            search_aliases=["preference", "a/b test", "annotate", "human feedback", "reward training", "compare"],
            inputs=[
                io.String.Input(
                    "name",
                    default="votes",
                    tooltip="The folder of the pairs and votes, in ComfyUI's output folder; several graphs may add to "
                    "one.",
                ),
                io.Autogrow.Input(
                    "clips",
                    template=io.Autogrow.TemplatePrefix(clip, prefix="clip", min=0, max=MOST_CLIPS),
                    tooltip="Videos of the same people, as of two seeds or two LoRAs; every two of them are a pair.",
                ),
                io.Autogrow.Input(
                    "references",
                    template=io.Autogrow.TemplatePrefix(person, prefix="ref", min=0, max=8),
                    tooltip="The people of the videos, one picture each.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="The prompt of the videos; it is shown beside them."
                ),
                fps_input("Frames per second of the videos; it enters the reward's score.", default=10.0),
                TrainingRunType.Input(
                    "training_run",
                    optional=True,
                    tooltip="A run whose own clips are added: the base policy against its newest iteration.",
                ),
            ],
            outputs=[io.String.Output("folder", tooltip="The folder of the pairs, for Train Reward.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name=None, **_) -> str:
        """Changes with every vote, so that the numbers on the node are those of the file."""
        try:
            return str(pair_folder(str(name)).file.stat().st_mtime_ns)
        except (UserError, OSError):
            return ""

    @classmethod
    def execute(
        cls,
        name: str,
        prompt: str,
        fps: float,
        clips: dict | None = None,
        references: dict | None = None,
        training_run: RunFolder | None = None,
    ) -> io.NodeOutput:
        require_range("fps", fps, FPS)
        folder = pair_folder(name)
        connected = {slot: images for slot, images in (clips or {}).items() if images is not None}
        if connected:
            if len(connected) < 2:
                raise UserError("one video is connected to `clips`; connect two or more of the same people")
            people = to_references(references or {})
            videos = [to_pixels(images, f"clips.{slot}").numpy() for slot, images in connected.items()]
            for pair in combinations(videos, 2):
                folder.add(pair, people, clean(prompt), "graph", fps)
        if training_run is not None:
            for found in clip_pairs(training_run):
                folder.add(found.clips, found.references, found.prompt, found.kind)
        if not folder.exists():
            raise UserError(f"`{folder.path.name}` has no pairs yet; connect two videos to `clips`, or a training run")
        records = folder.read()
        pairs, votes = len(records.pairs), len(records.votes)
        text = f"{folder.path.name}: {pairs} pair{'s' * (pairs != 1)}, {votes} vote{'s' * (votes != 1)}"
        text += "\nPress Vote to compare them"
        return io.NodeOutput(str(folder.path), ui={"text": (text,), "identity_grpo_pairs": (folder.path.name,)})


NODES = [Vote]
