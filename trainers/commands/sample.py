"""`sample`: one video from references and a prompt, as an animation and a strip of frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..clips import write_animation
from ..config import BUILT_IN, TrainConfig
from ..errors import UserError
from ..prompts import PromptItem
from ..runs.report import frame_strip
from .progress import quiet_libraries

if TYPE_CHECKING:
    from ..grpo.solvers import SolverName

TINYWORLD_PEOPLE = 64


def main(
    config: TrainConfig,
    references: list[Path],
    prompt: str | None,
    negative: str,
    lora: Path | None,
    strength: float,
    seed: int,
    out: Path,
    solver: SolverName = "euler",
) -> int:
    if out.suffix not in (".webp", ".gif"):
        raise UserError(f"--out {out}: an animation ends in .webp or .gif")
    item = _item(config, references, prompt, negative, seed)
    video = draw(config, item, lora, strength, seed, solver)
    write_animation(video, out, config.reward.fps, scale=max(1, 320 // video.shape[2]))
    frame_strip(item.references, video, out.with_suffix(".png"), item.prompt)
    print(f"{item.prompt}\n{out}\n{out.with_suffix('.png')}")
    return 0


def draw(
    config: TrainConfig, item: PromptItem, lora: Path | None, strength: float, seed: int, solver: SolverName = "euler"
):
    """The video uint8 [F, H, W, 3] of `item` by the policy of `config`, with its evaluation's size, steps and guidance."""
    from accelerate import PartialState

    from ..grpo.evaluate import evaluation_guidance, evaluation_size
    from ..grpo.rollout import sample
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
        videos = sample(
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


def _item(config: TrainConfig, references: list[Path], prompt: str | None, negative: str, seed: int) -> PromptItem:
    if config.policy.source in BUILT_IN and not references and prompt is None:
        from ..tinyworld.prompts import tiny_prompt_set

        return list(tiny_prompt_set("held_out", TINYWORLD_PEOPLE))[seed % TINYWORLD_PEOPLE]
    if not references or not prompt:
        raise UserError(
            "sample needs --reference (one picture per person) and --prompt; only TinyWorld draws people of its own"
        )
    for path in references:
        if not path.is_file():
            raise UserError(f"reference image {path} is missing")
    return PromptItem("sample", prompt, tuple(references), negative)
