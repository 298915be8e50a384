"""The node that samples one seed after the other until everybody in the video is right."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trainers.faces.board import face_board
from ..trainers.faces.ranking import best_first, is_right
from ..trainers.faces.text import headline_text, notes
from .face_networks import face_networks_input
from .faces import find, number, on_networks, report_videos
from .inputs import FPS, fps_input, require_given, require_range
from .pictures import named_references, to_image, to_pixels, to_video
from .samplers import SEED, Sampler, sample, sampler_inputs, scale_input, shift_input
from .types import FaceFiles, LazyPolicy

TRIES, SCORES = (1, 100), (0.0, 1.0)


class SampleUntilRight(Sampler):
    """A sampler with the face report behind it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scales = [
            scale_input("cfg", 4.5, "How strongly the prompt is followed: 4.5 for VACE, 7.5 for Phantom."),
            scale_input("image_cfg", 5.0, "How strongly Phantom keeps the people in the pictures; VACE ignores it."),
        ]
        return io.Schema(
            node_id="IdentityGRPOSampleUntilRight",
            display_name="Sample Until Right",
            category="Identity-GRPO/samplers",
            description="Samples with one seed after the other until the face report sees the right people in the "
            "video. Without success it gives the best of all. The reference images must be photographs.",
            search_aliases=["retry", "max tries", "best of n", "seed search", "resample", "identity", "person", "face"],
            inputs=[
                *sampler_inputs(8, scales, shift_input(3.0, "3 for VACE, 5 for Phantom.")),
                io.Int.Input(
                    "max_tries",
                    default=4,
                    min=TRIES[0],
                    max=TRIES[1],
                    tooltip="Videos that are sampled at most, with seed, seed + 1 and so on.",
                ),
                io.Float.Input(
                    "least_score",
                    default=0.7,
                    min=SCORES[0],
                    max=SCORES[1],
                    step=0.05,
                    tooltip="A video is right when its face report has at least this score, and nobody is missing, "
                    "swapped, there twice or a stranger.",
                ),
                fps_input("Frames per second of the video."),
                face_networks_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The frames of the first right video, or of the best."),
                io.Latent.Output("latent", tooltip="Its latents, as ComfyUI's VAE Decode expects them."),
                io.Int.Output("used_seed", tooltip="The seed that it was sampled with."),
                io.Float.Output("score", tooltip="The score of its face report, 0 to 1; -1 when it cannot be judged."),
                io.Image.Output("picture", tooltip="Who is who in it."),
                io.Video.Output("video", tooltip="The video at `fps` frames per second, for Save Video."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        policy: LazyPolicy,
        references: dict,
        cfg: float,
        image_cfg: float,
        seed: int,
        max_tries: int,
        least_score: float,
        fps: float,
        face_networks: FaceFiles | None = None,
        **inputs,
    ) -> io.NodeOutput:
        require_given("policy", policy, LazyPolicy, "Load Model")
        require_range("max_tries", max_tries, TRIES)
        require_range("least_score", least_score, SCORES)
        require_range("fps", fps, FPS)
        require_range("seed", seed, SEED)
        scales = {"cfg": cfg} if policy.kind == "vace" else {"text_cfg": cfg, "image_cfg": image_cfg}
        with on_networks() as device:
            people = find(named_references(references), device, face_networks)
        tries, lines = [], []
        for used in range(seed, min(seed + max_tries, SEED[1] + 1)):
            images, latent, *_ = sample(policy.kind, scales, policy, references, seed=used, **inputs).args
            with on_networks() as device:
                (found,) = report_videos([to_pixels(images)], people, fps, device)
            tries.append((images, latent, used, found))
            lines.append(", ".join([f"seed {used}: {headline_text(found)}", *notes(found)]))
            if is_right(found, least_score):
                break
        else:
            lines.append(f"none of {len(tries)} videos is right; this is the best of them")
        best = len(tries) - 1 if is_right(found, least_score) else best_first([t[3].headline for t in tries], None)[0]
        images, latent, used, found = tries[best]
        board = to_image(face_board(to_pixels(images).numpy(), found, f"seed {used}"))
        numbers = {"seed": used, "tries": len(tries), **found.numbers()}
        shown = ui.PreviewImage(board, cls=cls).as_dict() | {"text": ("\n".join(lines),), "identity_grpo": (numbers,)}
        return io.NodeOutput(images, latent, used, number(found.headline), board, to_video(images, fps), ui=shown)


NODES = [SampleUntilRight]
