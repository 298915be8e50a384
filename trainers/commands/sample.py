"""`sample`: one video from references and a prompt, as an animation and a strip of frames."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..config import BUILT_IN, TrainConfig
from ..errors import UserError
from ..pictures.before_after import frame_strip
from ..pictures.clips import write_animation
from ..prompts import PromptItem
from .options import add_policy_and_preset, config_from
from .progress import quiet_libraries

if TYPE_CHECKING:
    from ..diffusion.solvers import SolverName

TINYWORLD_PEOPLE = 64


def add_arguments(parser: ArgumentParser) -> None:
    add_policy_and_preset(parser)
    parser.add_argument(
        "--reference",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="one picture per person, in the order of the prompt (TinyWorld can do without: it renders its own)",
    )
    parser.add_argument("--prompt", help="what the video shows")
    parser.add_argument("--negative", help="what it should not show (default: the preset's negative prompt)")
    parser.add_argument("--lora", type=Path, help="a LoRA file or PEFT folder")
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (
        ("height", int),
        ("width", int),
        ("frames", int),
        ("steps", int),
        ("guidance", float),
        ("image-guidance", float),
        ("shift", float),
    ):
        only = "Phantom's scale of the references; " if name == "image-guidance" else ""
        parser.add_argument(f"--{name}", type=kind, help=f"{only}default: the preset's, as in evaluation")
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
        help="animation, .webp or .gif; a strip of frames goes to a .png beside it",
    )


def main(options: Namespace) -> int:
    """Write the video and a strip of its frames."""
    config, out = config_from(options), options.out
    if out.suffix not in (".webp", ".gif"):
        raise UserError(f"--out {out}: an animation ends in .webp or .gif")
    item = _item(config, options.reference, options.prompt, options.negative, options.seed)
    video = generate(config, item, options.lora, options.strength, options.seed, options.solver)
    write_animation(video, out, config.reward.fps, scale=max(1, 320 // video.shape[2]))
    frame_strip(item.references, video, out.with_suffix(".png"), item.prompt)
    print(f"{item.prompt}\n{out}\n{out.with_suffix('.png')}")
    return 0


def generate(
    config: TrainConfig, item: PromptItem, lora: Path | None, strength: float, seed: int, solver: SolverName = "euler"
):
    """The video uint8 [F, H, W, 3] of `item` by the policy of `config`, with its evaluation's size, steps and guidance."""
    from accelerate import PartialState

    from ..diffusion.sampling import sample_videos
    from ..grpo.evaluate import evaluation_guidance, evaluation_size
    from ..lora.formats import read_lora
    from ..lora.inject import load_lora_into
    from ..policies.load import policy_of

    quiet_libraries()
    policy = policy_of(config.policy, PartialState().device)
    if lora is not None:
        load_lora_into(policy.transformer, read_lora(lora), strength)
    size, steps = evaluation_size(config), config.evaluation.steps
    conditions = [policy.encode(item, size)]
    with tqdm(total=steps, desc="sampling", unit="step") as bar:
        videos = sample_videos(
            policy,
            conditions,
            size,
            steps,
            config.rollout.shift,
            evaluation_guidance(config),
            [seed],
            check=bar.update,
            solver=solver,
        )
    return videos[0].numpy()


def _item(
    config: TrainConfig, references: list[Path], prompt: str | None, negative: str | None, seed: int
) -> PromptItem:
    if config.policy.source in BUILT_IN and not references and prompt is None:
        from ..tinyworld.prompts import tiny_prompt_set

        return list(tiny_prompt_set("held_out", TINYWORLD_PEOPLE))[seed % TINYWORLD_PEOPLE]
    if not references or not prompt:
        raise UserError(
            "sample needs --reference (one picture per person) and --prompt; only TinyWorld renders people of its own"
        )
    for path in references:
        if not path.is_file():
            raise UserError(f"reference image {path} is missing")
    return PromptItem("sample", prompt, tuple(references), config.negative_prompt if negative is None else negative)
