"""`sample`: one video from references and a prompt, as an animation and a strip of frames."""

from __future__ import annotations

import contextlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..config import BUILT_IN, BUILT_IN_LORAS, TrainConfig, split_strength
from ..errors import UserError
from ..pictures.before_after import frame_strip
from ..pictures.clips import write_animation
from ..pictures.layout import save_png
from ..pictures.reading import read_picture
from ..policies.parts import find_parts
from ..prompts import EMPTY_PROMPT, PromptItem, is_blank
from .options import add_policy_and_preset, config_from
from .progress import counted, open_display, quiet_libraries

if TYPE_CHECKING:
    from ..diffusion.solvers import SolverName

TINYWORLD_ITEMS = 64


def add_arguments(parser: ArgumentParser) -> None:
    add_policy_and_preset(parser)
    parser.add_argument(
        "--reference",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="one picture per person, in the order of the prompt (without any, TinyWorld renders its own)",
    )
    parser.add_argument("--prompt", help="what the video shows")
    parser.add_argument("--negative", help="what it should not show (default: the preset's negative prompt)")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="a LoRA file or PEFT folder, with its strength if that is not 1; several act together",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    for name, kind, meaning in (
        ("height", int, "pixels, a multiple of 16"),
        ("width", int, "pixels, a multiple of 16"),
        ("frames", int, "frames, 4n+1"),
        ("steps", int, "denoising steps"),
        ("guidance", float, "scale of the text"),
        ("image-guidance", float, "Phantom's scale of the reference images"),
        ("shift", float, "flow shift of the noise schedule"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"{meaning} (default: the preset's, as in evaluation)")
    parser.add_argument(
        "--solver",
        choices=["euler", "unipc"],
        default="euler",
        help="euler (default) as in evaluation; unipc may need half the steps, but not at strong guidance",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("sample.webp"),
        help="animation, .webp or .gif; beside it go a strip of frames and TinyWorld's people (default: sample.webp)",
    )


def main(options: Namespace) -> int:
    """Write the video and a strip of its frames."""
    config, out = config_from(options).with_absolute_paths(), options.out
    if out.suffix not in (".webp", ".gif"):
        raise UserError(f"--out {out}: an animation ends in .webp or .gif")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: the folder {out.parent.absolute()} is missing or cannot be written")
    find_parts(config.policy.source, config.policy.text_encoder, config.policy.vae, config.policy.vace_module)
    loras = [_lora(text) for text in options.lora]
    item = _item(config, options.reference, options.prompt, options.negative, options.seed)
    video = generate(config, item, loras, options.seed, options.solver)
    write_animation(video, out, config.reward.fps, scale=max(1, 320 // video.shape[2]))
    frame_strip(item.references, video, out.with_suffix(".png"), item.prompt)
    pictures = [out.with_suffix(".png")]
    if not options.reference:
        # So that the people whom TinyWorld has made can be given again, to `score` or to another sample.
        for number, picture in enumerate(item.references, 1):
            pictures.append(out.with_name(f"{out.stem}-person-{number}.png"))
            save_png(Image.fromarray(picture), pictures[-1])
    print("\n".join([item.prompt, str(out), *map(str, pictures)]))
    return 0


def generate(
    config: TrainConfig,
    item: PromptItem,
    loras: Sequence[tuple[Path, float]],
    seed: int,
    solver: SolverName = "euler",
):
    """The video uint8 [F, H, W, 3] of `item` by the policy of `config`, with evaluation's size, steps and guidance.

    loras: files, each with its strength; they act together.
    """
    from accelerate import PartialState

    from ..diffusion.sampling import sample_videos
    from ..grpo.evaluate import evaluation_guidance, evaluation_size
    from ..lora.formats import read_lora
    from ..lora.several import load_loras_into
    from ..policies.load import policy_of

    quiet_libraries()
    adapters = [(read_lora(file), strength) for file, strength in loras]
    with contextlib.closing(open_display()) as show:
        policy = policy_of(config.policy, PartialState().device)
        load_loras_into(policy.transformer, adapters)
        size, steps = evaluation_size(config), config.evaluation.steps
        videos = sample_videos(
            policy,
            [policy.encode(item, size)],
            size,
            steps,
            config.rollout.shift,
            evaluation_guidance(config),
            [seed],
            check=counted("sampling", steps, show),
            solver=solver,
        )
    return videos[0].numpy()


def _lora(text: str) -> tuple[Path, float]:
    try:
        file, strength = split_strength(text)
    except ValueError as error:
        raise UserError(f"--lora {error}") from error
    path = BUILT_IN_LORAS.get(file, Path(file))
    if not path.exists():
        raise UserError(f"there is no LoRA {path}; give a .safetensors file or a folder of PEFT")
    return path, strength


def _item(
    config: TrainConfig, references: list[Path], prompt: str | None, negative: str | None, seed: int
) -> PromptItem:
    if config.policy.source in BUILT_IN and not references and prompt is None:
        from ..tinyworld.prompts import tiny_prompt_set

        return list(tiny_prompt_set("held_out", TINYWORLD_ITEMS))[seed % TINYWORLD_ITEMS]
    if prompt is not None and is_blank(prompt):
        raise UserError(EMPTY_PROMPT)
    if not references:
        raise UserError("--reference is missing: give one picture per person, in the order of the prompt")
    if prompt is None:
        raise UserError("--prompt is missing: say what the video of these people shows")
    for path in references:
        read_picture(path)
    return PromptItem("sample", prompt, tuple(references), config.negative_prompt if negative is None else negative)
