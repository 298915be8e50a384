"""`evaluate`: a LoRA against the base policy on the held-out items, as numbers and as pictures."""

from __future__ import annotations

import contextlib
import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TrainConfig, change_config
from ..errors import UserError
from ..files import write_atomic
from ..runs.folder import RunFolder, make_folder
from ..runs.registry import find
from .options import RUN_HELP, add_runs_folder
from .progress import Bar, Lines, counted, open_display, quiet_libraries
from .tables import markdown_table

if TYPE_CHECKING:
    from ..grpo.evaluate import Comparison, Measurement

SHOWN = 4  # items in the pictures
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Evaluated:
    """Both measurements of the same items and noise, and the files in which they are shown."""

    before: Measurement
    after: Measurement
    comparison: Comparison
    lora: Path
    files: list[Path]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help=RUN_HELP)
    parser.add_argument("--lora", type=Path, help="another LoRA than the run's newest export")
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """Evaluate the run's newest export, or another LoRA; print the table and where the pictures are."""
    run = find(options.runs, options.run)
    lora = options.lora or newest_export(run)
    if not lora.exists():
        raise UserError(f"there is no LoRA {lora}; give a .safetensors file or a folder of PEFT")
    with contextlib.closing(open_display()) as show:
        found = evaluate(run, lora, show)
    print(markdown_table(rows(found)))
    for line in (*sentences(found), *file_lines(found)):
        print(line)
    return 0


def newest_export(run: RunFolder) -> Path:
    """Raises UserError when the run has not saved a LoRA yet."""
    newest = run.newest()
    if newest is None:
        raise UserError(
            f"run {run.id} has no LoRA in {run.exports_folder} yet; wait for its first checkpoint, "
            "or name one with --lora"
        )
    return newest.path


def evaluate(run: RunFolder, lora: Path, show: Bar | Lines) -> Evaluated:
    """Sample the held-out items of the run's config without and with the LoRA; write `evaluation/<LoRA name>/` there.

    `show` displays the progress.
    """
    config = change_config(run.config(), {"reward": {"device": "same"}})  # one process, on one device
    if config.memory.plan == "sharded":
        config = change_config(config, {"memory": {"plan": "auto"}})
    make_folder(run.encodings_folder)
    folder = make_folder(run.path / "evaluation" / lora.stem)
    quiet_libraries()
    from accelerate import PartialState

    from ..grpo.evaluate import (
        compare,
        evaluated_items,
        evaluation_micro_batch,
        evaluation_size,
        held_out_videos,
        measure,
    )
    from ..grpo.models import encode_items, load_models, plan_memory
    from ..lora.formats import read_lora
    from ..lora.inject import load_lora_into, lora_disabled
    from ..memory.placement import REWARD
    from ..runs.inputs import run_inputs

    device = PartialState().device
    adapter = read_lora(lora)
    inputs = run_inputs(config)
    items = evaluated_items(config, inputs.held_out.items)
    models = load_models(
        config,
        device,
        run.encodings_folder,
        plan_memory(config, device, max(len(item.references) for item in items)),
        lambda policy, _: load_lora_into(policy.transformer, adapter),
        lambda policy, placement: encode_items(
            policy, placement, [(items, evaluation_size(config))], run.encodings_folder
        ),
    )
    policy, placement = models.policy, models.placement
    batches = -(-len(items) // evaluation_micro_batch(config))
    check = counted("evaluation", 2 * batches * config.evaluation.steps, show)
    with lora_disabled(policy.transformer):
        old = held_out_videos(policy, items, config, check, placement=placement)
    new = held_out_videos(policy, items, config, check, placement=placement)
    with placement.phase("evaluation: score", REWARD):
        before, after = (measure(models.reward, videos, items, config, inputs.judge) for videos in (old, new))
    found = Evaluated(before, after, compare(before.rewards, after.rewards), lora, [])
    found.files.extend(_write_files(run, config, folder, items, old, new, found))
    return found


def rows(found: Evaluated) -> list[dict[str, str]]:
    """The table: one row per quantity."""
    before, after, pairs = found.before, found.after, found.comparison
    table = [
        {
            "": "reward",
            "base policy": f"{_mean(before.rewards):.3f}",
            "with LoRA": f"{_mean(after.rewards):.3f}",
            "change": f"{pairs.margin:+.3f}",
        }
    ]
    judge = "oracle" if after.alignment else "face report"
    for name, title in (("identity", f"identity ({judge})"), ("alignment", "text alignment (oracle)")):
        old, new = getattr(before, name), getattr(after, name)
        if old and new:
            old, new = _mean(old), _mean(new)
            # A face report may begin at 0, of which a change has no percentage.
            change = f"{new / max(1e-9, old) - 1:+.1%}" if after.alignment else f"{new - old:+.3f}"
            table.append({"": title, "base policy": f"{old:.3f}", "with LoRA": f"{new:.3f}", "change": change})
    table.append(
        {
            "": "held-out pairs: win / tie / loss",
            "base policy": "",
            "with LoRA": f"{pairs.win:.0%} / {pairs.tie:.0%} / {pairs.loss:.0%}",
            "change": f"win rate 95% CI {pairs.win_low:.0%} to {pairs.win_high:.0%}",
        }
    )
    return table


def sentences(found: Evaluated) -> list[str]:
    """The numbers as sentences."""
    pairs, count = found.comparison, len(found.after.ids)
    by_reward = f"By the learned reward the LoRA is {verdict(pairs, count)} the base policy"
    lines = [f"{by_reward}: win rate {pairs.win:.0%} on {count} held-out items (same prompts, same noise)."]
    if found.before.identity and found.after.identity:
        old, new = _mean(found.before.identity), _mean(found.after.identity)
        if found.after.alignment:
            change = f"{new / max(1e-9, old) - 1:+.1%}"
            lines.append(f"TinyWorld's oracle of identity, which is never trained on, changed by {change}.")
        else:
            lines.append(f"The face report, which is never trained on, changed from {old:.2f} to {new:.2f}.")
    return lines


def verdict(pairs: Comparison, count: int) -> str:
    """How the LoRA compares over `count` pairs, by an exact two-sided sign test at 5%; ties are left out."""
    wins, losses = round(pairs.win * count), round(pairs.loss * count)
    if not wins and not losses:
        return "equal to (every pair is a tie)"
    decided = wins + losses
    tail = sum(math.comb(decided, k) for k in range(max(wins, losses), decided + 1))
    if 2 * tail / 2**decided > SIGNIFICANCE:
        return "neither clearly better nor worse than"
    return "better than" if wins > losses else "worse than"


def file_lines(found: Evaluated) -> list[str]:
    return [
        f"LoRA            {found.lora}",
        *(
            f"{name:15} {path}"
            for name, path in zip(
                ("curve", "before and after", "the same, moving", "numbers"), found.files, strict=True
            )
        ),
    ]


def _write_files(run: RunFolder, config: TrainConfig, folder: Path, items, old, new, found: Evaluated) -> list[Path]:
    from ..pictures.before_after import before_after, clip_sheet
    from ..pictures.curves import plot_curve

    shown = slice(0, SHOWN)
    notes = [
        (f"reward {a:.2f}", f"reward {b:.2f}") for a, b in zip(found.before.rewards, found.after.rewards, strict=True)
    ]
    pictures = (
        [item.references for item in items[shown]],
        list(old[shown].cpu().numpy()),
        list(new[shown].cpu().numpy()),
    )
    captions = [item.prompt for item in items[shown]]
    curve = plot_curve(run.read_metrics(), run.curve_file, run.id)
    sheet = clip_sheet(*pictures, folder / "before_after.png", captions, notes[shown])
    moving = before_after(*pictures, folder / "before_after.webp", config.reward.fps, captions, notes[shown])
    numbers = folder / "metrics.md"
    write_atomic(numbers, markdown_table(rows(found)) + "\n\n" + "\n".join(sentences(found)) + "\n")
    return [curve, sheet, moving, numbers]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
