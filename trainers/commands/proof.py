"""`proof`: what recipes learn in TinyWorld, over several seeds and noises, with controls, as one table to repeat.

Every run trains TinyWorld's policy by the `tiny` preset with the changes in PROOF and those of its recipe. Its LoRAs
and the base policy are measured on the same held-out items under the same noises, which no training uses. A control is
the same run with the rewards shuffled within each group: updates of the same size, in no direction. What is claimed is
the lower end of a 95% interval of the relative gain of the oracle's identity, over items and training seeds.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import PolicyKind, TrainConfig, make_config, parse_yaml, preset_for
from ..config.presets import merge
from ..errors import UserError
from ..files import read_regular, write_atomic
from ..grpo.intervals import Interval, difference, relative_gain
from ..runs.batch import RunBatch
from .numbers import number_between
from .options import add_runs_folder, add_set, add_tinyworld_policy, parse_settings
from .tables import markdown_table

if TYPE_CHECKING:
    import torch

    from ..grpo.wide import WideMeasure

PROOF = {
    "iterations": 40,
    "rollout": {"micro_batch": 64},
    "optim": {"micro_batch": 64},
    "evaluation": {"items": 16, "every": 1000},
    "checkpoint": {"every": 10, "keep": 1000},
}
RECIPES: dict[str, dict[str, Any]] = {
    # The demo's own.
    "tiny": {},
    # The presets of real models, in TinyWorld: their steps, windows and updates, and learning rates that move the
    # velocity as much per update. `paper` runs as long as costs what 40 iterations of `fast` cost at real size.
    "fast": {"optim": {"learning_rate": 7.5e-4, "kl": 0.0}},
    "paper": {
        "iterations": 3,
        "rollout": {
            "dynamics": "flow_sde",
            "updates_per_iteration": 2,
            "window": {"kind": "all", "size": 7, "per": "iteration"},
        },
        "optim": {"learning_rate": 1.5e-3, "clip_range": 1e-3},
        "ema": {"every": 1},
    },
    # `fast` until nothing more is learned, with a learning rate that falls to zero.
    "long": {"iterations": 200, "optim": {"learning_rate": 7.5e-4, "kl": 0.0, "schedule": "linear"}},
    # `tiny` under TinyWorld's distilled LoRA of 4 steps, trained and measured at its steps.
    "distilled": {
        "policy": {"loras": ["tinyworld-4-steps"]},
        "rollout": {"steps": 4, "window": {"last": 3}},
        "evaluation": {"steps": 4},
    },
}
USUAL = "tiny,fast,paper"
PLAIN, UNDER, LONG = "tiny", "distilled", "long"
TRANSFER = "tiny, sampled as distilled"
LEAST_SHARE = 2 / 3
"""Claimed of the gain of UNDER, in relation to that of PLAIN."""
LEAST_GAIN = 0.22
"""Claimed of the lower end of the gain's interval after 40 iterations, without a distilled LoRA."""
LEAST_IDENTITY = 0.70
"""Claimed of the oracle's identity at the end of LONG."""
MOST_NUMBERS = 1000
NO_CONTROL = "no control was run"


@dataclass(frozen=True)
class Job:
    """One run of the proof."""

    recipe: str
    control: bool
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}-{'control' if self.control else 'trained'}-{self.seed}"


@dataclass(frozen=True)
class Row:
    """What the runs of one recipe have gained after `iteration` iterations, or its controls."""

    recipe: str
    control: bool
    seeds: list[int]
    iteration: int
    before: float
    identity: Interval
    alignment: Interval
    quality: Interval
    margin: float
    win: float
    hours: float


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=numbers, default=numbers("0-4"), help="training seeds, e.g. 0-4 or 3,8 (default: 0-4)"
    )
    parser.add_argument(
        "--controls",
        type=numbers,
        default=numbers("0-4"),
        help="training seeds of the controls, `none` for none (default: 0-4)",
    )
    parser.add_argument(
        "--evaluation-seeds",
        type=numbers,
        default=numbers("11,12"),
        help="noises that everything is measured under (default: 11,12)",
    )
    parser.add_argument("--items", type=number_between(1, 10_000), default=512, help="held-out items (default: 512)")
    parser.add_argument(
        "--at", type=numbers, help="iterations after which the LoRA is measured, multiples of 10 (default: the last)"
    )
    parser.add_argument(
        "--recipes",
        default=USUAL,
        help=f"names of {', '.join(RECIPES)}, separated by commas (default: {USUAL}), or a YAML file: name of a recipe "
        "-> settings",
    )
    parser.add_argument(
        "--jobs", type=number_between(1, 64), default=3, help="runs at a time on the device (default: 3)"
    )
    add_tinyworld_policy(parser)
    add_set(parser)
    add_runs_folder(parser, "runs/proof")


def numbers(text: str) -> list[int]:
    """For `type=` of an argument: `0-4` or `3,8` as a list without repeats, `none` as an empty one."""
    found: dict[int, None] = {}
    for part in text.split(",") if text != "none" else ():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ArgumentTypeError(f"`{text}` is not a list of numbers such as 0-4 or 3,8")
        chosen = range(int(first), int(last or first) + 1)
        if not 0 < len(chosen) <= MOST_NUMBERS:
            raise ArgumentTypeError(f"`{part}` has {len(chosen)} numbers; give 1 to {MOST_NUMBERS}")
        found |= dict.fromkeys(chosen)
    return list(found)


def main(options: Namespace) -> int:
    """Run everything, print the tables and write them to `<runs>/proof.md`; 0 if every claim holds, else 1."""
    from accelerate import PartialState

    recipes, root = read_recipes(options.recipes), options.runs
    changes = parse_settings(options.set)
    jobs = [
        Job(recipe, control, seed)
        for control, seeds in ((False, options.seeds), (True, options.controls))
        for seed in seeds
        for recipe in recipes
    ]
    configs = {job: proof_config(job, merge(recipes[job.recipe], changes), options.policy) for job in jobs}
    check_options(options, list(configs.values()))
    root.mkdir(parents=True, exist_ok=True)
    meters: dict[str, WideMeasure] = {}
    before: dict[str, dict[str, np.ndarray]] = {}
    for recipe in recipes:
        config = next(configs[job] for job in jobs if job.recipe == recipe)
        # Recipes that are measured alike share a meter, whose base policy is measured once.
        alike = next((other for other in meters if _measured(configs, jobs, other) == _sampling(config)), None)
        meters[recipe] = meters[alike] if alike else make_meter(config, options, PartialState().device)
        plain = f"base-{options.policy}.json"
        kept = plain if not config.policy.loras else f"base-{options.policy}-{recipe}.json"
        before[recipe] = before[alike] if alike else meters[recipe].measure(None, root / kept)
    found: dict[tuple[Job, int], dict[str, np.ndarray]] = {}
    batch = RunBatch(root, {job.name: config for job, config in configs.items()}, options.jobs)
    for name, run in batch.finish(lambda line: print(line, flush=True)):
        job = next(job for job in jobs if job.name == name)
        for iteration in options.at or [configs[job].iterations]:
            kept = run.path / "evaluation" / f"wide-{iteration:06d}.json"
            measured = [(job, meters[job.recipe], kept)]
            if job.recipe == PLAIN and UNDER in meters:
                # What was learned without the distilled LoRA, sampled with it.
                beside = Job(TRANSFER, job.control, job.seed)
                configs[beside], before[TRANSFER] = configs[job], before[UNDER]
                measured.append((beside, meters[UNDER], kept.with_name(f"under-{iteration:06d}.json")))
            for one, meter, file in measured:
                found[one, iteration] = meter.measure(run.export_path(iteration), file)
                gain = found[one, iteration]["identity"].mean() / before[one.recipe]["identity"].mean() - 1
                print(f"{one.name}: {gain:+.1%} after {iteration} iterations", flush=True)
    rows = [
        summarise(recipe, control, iteration, found, before[recipe], configs, options.policy)
        for iteration in options.at or sorted({config.iterations for config in configs.values()})
        for recipe in before
        for control in (False, True)
        if any(job.recipe == recipe and job.control == control and at == iteration for job, at in found)
    ]
    claims = verdicts(rows)
    text = report(rows, claims, options)
    write_atomic(root / "proof.md", text)
    print(text)
    return 0 if all(holds for _, holds in claims) else 1


def make_meter(config: TrainConfig, options: Namespace, device: torch.device) -> WideMeasure:
    """Measures LoRAs of a recipe. Raises UserError where TinyWorld's oracle cannot."""
    from ..grpo.wide import WideMeasure
    from ..runs.inputs import run_inputs

    evaluation = config.evaluation.model_copy(update={"items": options.items})
    wide = config.model_copy(
        update={"evaluation": evaluation, "rollout": config.rollout.model_copy(update={"micro_batch": 64})}
    )
    inputs = run_inputs(wide)
    if inputs.judge is None:
        raise UserError("proof measures by TinyWorld's oracle: leave prompts and the size of the videos as they are")
    return WideMeasure(wide, inputs.held_out.items, options.evaluation_seeds, inputs.judge, device)


def _measured(configs: dict[Job, TrainConfig], jobs: list[Job], recipe: str) -> tuple:
    return _sampling(next(configs[job] for job in jobs if job.recipe == recipe))


def _sampling(config: TrainConfig) -> tuple:
    """What decides how the policy is sampled when it is measured."""
    rollout = config.rollout
    return config.policy, config.evaluation, config.video, rollout.shift, rollout.guidance, rollout.image_guidance


def check_options(options: Namespace, configs: list[TrainConfig]) -> None:
    """Raises UserError, before anything is trained, for what could not be measured afterwards."""
    if not options.seeds or not options.evaluation_seeds:
        raise UserError("--seeds and --evaluation-seeds need at least one number each")
    for config in configs:
        for iteration in options.at or ():
            if iteration != config.iterations and (
                not 0 < iteration < config.iterations or iteration % config.checkpoint.every
            ):
                raise UserError(
                    f"--at {iteration}: a run of {config.iterations} iterations saves a LoRA every "
                    f"{config.checkpoint.every} and after the last; choose one of those"
                )


def read_recipes(given: str) -> dict[str, dict[str, Any]]:
    """Name of a recipe -> the settings that it changes; `given`: names of RECIPES, or a file.

    Raises UserError for a name that is not there, or a file that is not such a list.
    """
    names = given.split(",")
    if all(name in RECIPES for name in names):
        return {name: RECIPES[name] for name in names}
    path = Path(given)
    try:
        recipes = parse_yaml(read_regular(path).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the recipes {path}: {error}; give a YAML file, or names of {', '.join(RECIPES)}"
        ) from error
    if (
        not isinstance(recipes, dict)
        or not recipes
        or not all(isinstance(v, dict) or v is None for v in recipes.values())
    ):
        raise UserError(f"{path} is not a list of recipes; write `name: {{setting: value, …}}` for each")
    return {str(name): settings or {} for name, settings in recipes.items()}


def proof_config(job: Job, changes: dict[str, Any], policy: PolicyKind = "vace") -> TrainConfig:
    """The configuration of a run; a control differs from its recipe's run in nothing but shuffled rewards."""
    settings = merge(merge(PROOF, changes), {"seed": job.seed})
    if job.control:
        settings = merge(settings, {"reward": {"shuffle": True}})
    return make_config(preset_for("tiny", policy), settings)


def summarise(
    recipe: str,
    control: bool,
    iteration: int,
    found: dict[tuple[Job, int], dict[str, np.ndarray]],
    before: dict[str, np.ndarray],
    configs: dict[Job, TrainConfig],
    policy: PolicyKind,
) -> Row:
    """One row over the training seeds of a recipe, or of its controls."""
    from ..grpo.cost import seconds_per_video  # imports torch and diffusers

    jobs = [job for job, at in found if (job.recipe, job.control, at) == (recipe, control, iteration)]
    after = {name: np.stack([found[job, iteration][name] for job in jobs]) for name in before}
    # A recipe that stands for a preset costs what the preset costs.
    config = make_config(preset_for(recipe, policy)) if recipe in ("fast", "paper") else configs[jobs[0]]
    videos = config.rollout.groups * config.rollout.group_size
    seconds = seconds_per_video(config, policy)
    return Row(
        recipe,
        control,
        [job.seed for job in jobs],
        iteration,
        float(before["identity"].mean()),
        relative_gain(before["identity"], after["identity"]),
        difference(before["alignment"], after["alignment"]),
        difference(before["quality"], after["quality"]),
        float((after["rewards"] - before["rewards"]).mean()),
        float((after["rewards"] > before["rewards"]).mean()),
        seconds * videos * iteration / 3600,
    )


def verdicts(rows: list[Row]) -> list[tuple[str, bool]]:
    """The claims about the last iteration of every recipe, each with whether it holds for all.

    `paper` is only compared: it ends after as few iterations as cost what `fast` costs.
    """
    last = {row.recipe: row.iteration for row in rows}  # they are in the order of their iterations
    ends = [row for row in rows if row.iteration == last[row.recipe] and row.recipe != "paper"]
    trained = {row.recipe: row for row in ends if not row.control}
    alone = [row for recipe, row in trained.items() if recipe not in (UNDER, TRANSFER)]
    control = [row for row in ends if row.control]
    paper = next((row for row in rows if row.recipe == "paper" and not row.control), None)
    claims = [
        (
            f"the oracle's identity gains at least {LEAST_GAIN:.0%} (lower end of the 95% interval)",
            all(row.identity.low >= LEAST_GAIN for row in alone),
        ),
        ("text alignment is not lower", all(row.alignment.high >= 0 for row in trained.values())),
        (
            f"shuffled rewards gain nothing ({'interval contains or lies below zero' if control else NO_CONTROL})",
            bool(control) and all(row.identity.low <= 0 for row in control),
        ),
    ]
    if PLAIN in trained and UNDER in trained:
        plain, under = trained[PLAIN].identity.value, trained[UNDER].identity.value
        claims.append(
            (
                f"`{UNDER}` gains at least {LEAST_SHARE:.0%} of what `{PLAIN}` gains ({under:+.1%} of {plain:+.1%})",
                plain > 0 and under >= LEAST_SHARE * plain,
            )
        )
    if LONG in trained:
        end = trained[LONG]
        reached = end.before * (1 + end.identity.value)
        claims.append((f"`{LONG}` ends at {LEAST_IDENTITY:.2f} or more ({reached:.3f})", reached >= LEAST_IDENTITY))
    if paper and "fast" in trained:
        fast = trained["fast"]
        claims.append(
            (
                f"`fast` gains at least 3 times what `paper` gains in {paper.hours:.1f} hours at real size",
                fast.identity.value >= 3 * paper.identity.value and fast.hours <= paper.hours * 1.1,
            )
        )
    return claims


def report(rows: list[Row], claims: list[tuple[str, bool]], options: Namespace) -> str:
    """The table, and at equal cost at real size, as markdown."""
    table = [
        {
            "recipe": row.recipe + (" (control)" if row.control else ""),
            "iterations": row.iteration,
            "seeds": len(row.seeds),
            "identity": f"{row.before:.3f} -> {row.before * (1 + row.identity.value):.3f}",
            "gain (95% CI)": _percent(row.identity),
            "alignment": _signed(row.alignment),
            "picture quality": _signed(row.quality),
            "reward": f"{row.margin:+.2f}",
            "win rate": f"{row.win:.0%}",
            "hours at real size": f"{row.hours:.1f}",
        }
        for row in rows
    ]
    lines = [
        markdown_table(table),
        "",
        (
            f"{options.policy}, {options.items} held-out items under the evaluation seeds {options.evaluation_seeds}; "
            f"training seeds {options.seeds}, controls {options.controls}."
        ),
        "",
        *(f"- {'holds' if holds else 'FAILS'}: {claim}" for claim, holds in claims),
        "",
    ]
    return "\n".join(lines)


def _percent(interval: Interval) -> str:
    return f"{interval.value:+.1%} ({interval.low:+.1%} to {interval.high:+.1%})"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
