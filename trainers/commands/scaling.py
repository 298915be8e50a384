"""`scaling`: the same short run on one GPU and on several, and what more would take."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from ..config import RECIPES, make_config, preset_for
from ..config.presets import merge
from .bench import say
from .memory import add_trial, trial_models
from .numbers import number_between
from .options import parse_settings
from .tables import markdown_table


def add_arguments(parser: ArgumentParser) -> None:
    add_trial(parser, "scaling-trial")
    parser.add_argument("--preset", choices=RECIPES, help="whose settings are used (default: tiny for tiny, else fast)")
    parser.add_argument(
        "--processes",
        type=number_between(1, 1024),
        nargs="+",
        default=(1, 2),
        metavar="N",
        help="one process on each GPU, or several on the CPU (default: 1 2)",
    )
    parser.add_argument(
        "--groups",
        type=number_between(1, 4096),
        default=4,
        help="groups of an update, fewer than a real run's (default: 4)",
    )
    parser.add_argument(
        "--iterations", type=number_between(1, 100), default=2, help="of which the last is measured (default: 2)"
    )


def main(options: Namespace) -> int:
    """Print the table and write it to `scaling.md`. Raises UserError when a run fails."""
    import torch

    from ..bench.limits import train_once
    from ..bench.scaling import Scaled, fit, predictions, rows, scaled

    folder = options.folder.absolute()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models, _ = trial_models(options.size, options.policy, folder, device, short_text=True)
    preset = preset_for(options.preset or ("tiny" if options.size == "tiny" else "fast"), options.policy)
    changes = merge(models, parse_settings(options.set))
    whole = make_config(preset, changes)
    evaluated = 2 if options.size == "tiny" else whole.rollout.micro_batch * max(options.processes)
    short = merge(changes, {"held_out": 0 if options.size == "tiny" else evaluated})
    config = make_config(preset, merge(short_run(options, evaluated), short))
    found: list[Scaled] = []
    first = None
    for processes in sorted(set(options.processes)):
        say(f"{processes} process{'es' * (processes > 1)}")
        run = train_once(folder / "runs", f"{preset}-{processes}", config, say, options.reuse, processes)
        first = first or run
        found.append(scaled(processes, config, run, first))
    tables = [markdown_table(list(rows(found))), markdown_table(list(predictions(fit(found), whole)))]
    text = "\n\n".join(tables) + "\n"
    (folder / "scaling.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def short_run(options: Namespace, evaluated: int) -> dict[str, Any]:
    """Changes to a preset: few groups and hardly an evaluation; steps, sizes and micro-batches stay.

    evaluated: held-out items, as many as fill a micro-batch of every process: blocks compiled for another number of
    videos would be compiled again, for any number.
    """
    return {
        "iterations": options.iterations,
        "rollout": {"groups_per_update": options.groups},
        "evaluation": {"items": evaluated, "steps": 2, "every": 1_000_000},
        "checkpoint": {"every": 1_000_000},
    }
