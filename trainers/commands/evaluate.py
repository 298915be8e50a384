"""`evaluate`: a LoRA against the untouched policy on the held-out items, as numbers and as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from ..config import TrainConfig
from ..errors import UserError
from ..grpo.evaluate import Comparison, Measurement, compare, held_out_videos, measure
from ..lora.formats import read_lora
from ..lora.inject import load_lora_into
from ..policies.load import policy_of
from ..prompts import resolve_prompts
from ..rewards.load import load_reward
from ..runs.atomic import write_atomic
from ..runs.folder import RunFolder
from ..runs.report import before_after, clip_sheet, plot_curve, table
from .progress import quiet_libraries

SHOWN = 4


@dataclass(frozen=True)
class Evaluated:
    """Both measurements of the same items and noise, and the files that show them."""

    before: Measurement
    after: Measurement
    comparison: Comparison
    lora: Path
    files: list[Path]


def main(run: RunFolder, lora: Path | None) -> int:
    """Evaluate the run's newest export, or another LoRA; print the table and where the pictures are."""
    quiet_libraries()
    found = evaluate(run, lora or newest_export(run))
    print(table(rows(found)))
    for line in (*sentences(found), *files_told(found)):
        print(line)
    return 0


def newest_export(run: RunFolder) -> Path:
    """Raises UserError when the run has not saved a LoRA yet."""
    exports = sorted(run.exports.glob("*.safetensors"))
    if not exports:
        raise UserError(
            f"run {run.id} has no LoRA in {run.exports} yet; wait for its first checkpoint or name one with --lora"
        )
    return exports[-1]


def evaluate(run: RunFolder, lora: Path) -> Evaluated:
    """Sample the held-out items of the run's config without and with the LoRA; write `evaluation/<LoRA name>/` into the run."""
    config = run.config()
    device = PartialState().device
    adapter = read_lora(lora)
    items = resolve_prompts(config)[1].items[: config.evaluation.items]
    policy = policy_of(config.policy, device)
    reward = load_reward(config.reward, device)
    old = held_out_videos(policy, items, config)
    load_lora_into(policy.transformer, adapter)
    new = held_out_videos(policy, items, config)
    before, after = (measure(reward, videos, items, config) for videos in (old, new))
    folder = run.path / "evaluation" / lora.stem
    folder.mkdir(parents=True, exist_ok=True)
    found = Evaluated(before, after, compare(before.rewards, after.rewards), lora, [])
    found.files.extend(_draw(run, config, folder, items, old, new, found))
    return found


def rows(found: Evaluated) -> list[dict[str, str]]:
    """The table: one row per quantity."""
    before, after = found.before, found.after
    told = [
        {
            "": "reward",
            "untouched": f"{_mean(before.rewards):.3f}",
            "tuned": f"{_mean(after.rewards):.3f}",
            "change": f"{found.comparison.margin:+.3f}",
        }
    ]
    for name, title in (("identity", "oracle identity"), ("alignment", "text alignment (oracle)")):
        old, new = getattr(before, name), getattr(after, name)
        if old and new:
            told.append(
                {
                    "": title,
                    "untouched": f"{_mean(old):.3f}",
                    "tuned": f"{_mean(new):.3f}",
                    "change": f"{_mean(new) / max(1e-9, _mean(old)) - 1:+.1%}",
                }
            )
    won = found.comparison
    told.append(
        {
            "": "held-out pairs won / tied / lost",
            "untouched": "",
            "tuned": f"{won.win:.0%} / {won.tie:.0%} / {won.loss:.0%}",
            "change": f"95% interval {won.win_low:.0%} to {won.win_high:.0%}",
        }
    )
    return told


def sentences(found: Evaluated) -> list[str]:
    """What the numbers say."""
    won = found.comparison
    verdict = "better" if won.win_low > 0.5 else "worse" if won.win_high < 0.5 else "neither clearly better nor worse"
    items = f"{len(found.after.ids)} held-out items (same prompts, same noise)"
    told = [f"By the learned reward the tuned policy is {verdict}: it wins {won.win:.0%} of {items}."]
    if found.before.identity and found.after.identity:
        gain = _mean(found.after.identity) / max(1e-9, _mean(found.before.identity)) - 1
        told.append(f"The renderer's own measure of identity, which no reward sees, changed by {gain:+.1%}.")
    return told


def files_told(found: Evaluated) -> list[str]:
    return [
        f"LoRA            {found.lora}",
        *(
            f"{name:15} {path}"
            for name, path in zip(
                ("curve", "before and after", "the same, moving", "numbers"), found.files, strict=True
            )
        ),
    ]


def _draw(run: RunFolder, config: TrainConfig, folder: Path, items, old, new, found: Evaluated) -> list[Path]:
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
    curve = plot_curve(run.read_metrics(), run.path / "curve.png", run.id)
    sheet = clip_sheet(*pictures, folder / "before_after.png", captions, notes[shown])
    moving = before_after(*pictures, folder / "before_after.webp", config.reward.fps, captions, notes[shown])
    numbers = folder / "metrics.md"
    write_atomic(numbers, table(rows(found)) + "\n\n" + "\n".join(sentences(found)) + "\n")
    return [curve, sheet, moving, numbers]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
