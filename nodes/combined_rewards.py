"""The node that gives a run several rewards."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui

from ..trainers.errors import UserError
from . import folders
from .inputs import require_given, require_range
from .types import FaceFiles, FaceNetworksType, LazyReward, RewardType

WEIGHTS = (0.0, 1000.0)


def weight_input(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=WEIGHTS[0], max=WEIGHTS[1], step=0.05, tooltip=tooltip)


class CombineRewards(io.ComfyNode):
    """The identity reward with others beside it, for Train."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOCombineRewards",
            display_name="Combine Rewards",
            category="Identity-GRPO/rewards",
            description="Gives Train several rewards: each is normalised in its group, multiplied by its weight and "
            "added. Guard rails keep a run from gaining identity by standing still or by pasting the pictures.",
            search_aliases=["several rewards", "reward weights", "guard rail", "multi reward", "gdpo"],
            inputs=[
                RewardType.Input("reward", tooltip="The identity reward, from Load Reward."),
                weight_input("identity", 1.0, "Weight of the identity reward."),
                weight_input(
                    "motion",
                    0.25,
                    "Weight of the motion that is left of the base policy's; 0: off. Each prompt costs one more video.",
                ),
                weight_input(
                    "copy_paste",
                    0.0,
                    "Weight of the share of frames that copy no reference image, by the face report; 0: off. It needs "
                    "photographs.",
                ),
                weight_input(
                    "faces",
                    0.0,
                    "Weight of the score of the face report; 0: off. Another embedder must judge then: connect "
                    "face_networks or judge_networks.",
                ),
                weight_input(
                    "alignment", 0.0, "Weight of the similarity of frames and prompt by a CLIP model; 0: off."
                ),
                io.Combo.Input(
                    "clip",
                    options=folders.clip_choices(),
                    tooltip=f"The CLIP model for alignment: a folder of models/{folders.REWARDS} as transformers "
                    "writes it.",
                ),
                FaceNetworksType.Input(
                    "face_networks",
                    optional=True,
                    tooltip="The networks that are trained on, where faces has a weight.",
                ),
                FaceNetworksType.Input(
                    "judge_networks", optional=True, tooltip="The networks that judge the held-out videos."
                ),
            ],
            outputs=[RewardType.Output("reward", tooltip="For Train; other nodes score by the identity reward alone.")],
        )

    @classmethod
    def execute(
        cls,
        reward: LazyReward,
        identity: float,
        motion: float,
        copy_paste: float,
        faces: float,
        alignment: float,
        clip: str,
        face_networks: FaceFiles | None = None,
        judge_networks: FaceFiles | None = None,
    ) -> io.NodeOutput:
        require_given("reward", reward, LazyReward, "Load Reward")
        weights = {
            "identity": identity,
            "faces": faces,
            "motion": motion,
            "copy_paste": copy_paste,
            "alignment": alignment,
        }
        for name, weight in weights.items():
            require_range(name, weight, WEIGHTS)
        if not any(weights.values()):
            raise UserError("every weight is 0; give one of the rewards a weight above 0")
        settings: dict = {name: {"weight": weight} for name, weight in weights.items()}
        trained, judge = face_networks or FaceFiles(), judge_networks or FaceFiles()
        settings["faces"]["embedder"] = trained.embedder
        settings["alignment"]["source"] = folders.clip_source(clip) if alignment else None
        if faces and trained.embedder == judge.embedder:
            raise UserError(
                "`faces` would train on the face embedder that judges; connect another one to `face_networks` or "
                "`judge_networks` (Load Face Networks)"
            )
        files = {"detector": judge.detector, "embedder": judge.embedder}
        shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
        several = replace(reward, run_settings={"rewards": settings, "faces": files})
        return io.NodeOutput(several, ui=ui.PreviewText(shown))


NODES = [CombineRewards]
