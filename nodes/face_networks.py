"""The node that chooses the networks by which the face nodes find and compare faces."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trainers.faces.users import load_recogniser
from . import folders
from .types import FaceFiles, FaceNetworksType

CATEGORY = "Identity-GRPO/faces"


def face_networks_input() -> io.Input:
    """For nodes that look at faces."""
    return FaceNetworksType.Input(
        "face_networks",
        optional=True,
        tooltip="Face networks of your own, from Load Face Networks; without it those of this pack.",
    )


class LoadFaceNetworks(io.ComfyNode):
    """A detector and an embedder of the user's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadFaceNetworks",
            display_name="Load Face Networks",
            category=CATEGORY,
            description="Chooses another face detector or embedder for the face nodes, in ONNX files as InsightFace "
            "publishes them. Mind their licence: InsightFace's are for non-commercial use only.",
            search_aliases=["insightface", "arcface", "scrfd", "onnx", "buffalo", "antelope"],
            inputs=[
                io.Combo.Input(
                    "detector",
                    options=folders.face_choices(),
                    tooltip="What finds faces: the detector of this pack, or an ONNX file of models/insightface with "
                    "the interface of SCRFD.",
                ),
                io.Combo.Input(
                    "embedder",
                    options=folders.face_choices(),
                    tooltip="What compares faces: the embedder of this pack, or an ONNX file of models/insightface "
                    "with the interface of ArcFace.",
                ),
            ],
            outputs=[
                FaceNetworksType.Output(
                    "face_networks", tooltip="For Face Report, Keep Best, Sample Until Right and Combine Rewards."
                )
            ],
        )

    @classmethod
    def execute(cls, detector: str, embedder: str) -> io.NodeOutput:
        files = FaceFiles(folders.face_file(detector), folders.face_file(embedder))
        note = load_recogniser(files.detector, files.embedder).licence_note
        return io.NodeOutput(files, ui=ui.PreviewText(note or "the networks of this pack"))


NODES = [LoadFaceNetworks]
