"""`bench`: seconds, TFLOP/s and memory of every phase of an iteration, on this machine."""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.iteration import PHASES
from ..bench.sizes import SIZES
from ..config import RECIPES, TrainConfig, make_config, preset_for
from ..config.presets import merge
from .numbers import number_between
from .options import add_set, parse_settings
from .tables import markdown_table

if TYPE_CHECKING:
    import torch

    from ..bench.report import Report

RESOLUTION = re.compile(r"(\d{1,4})x(\d{1,4})x(\d{1,4})")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="TinyWorld (default), or models of the published sizes with random weights",
    )
    parser.add_argument("--policy", choices=("vace", "phantom"), default="vace", help="default: vace")
    parser.add_argument(
        "--preset",
        choices=RECIPES,
        help="whose settings and iteration are measured (default: tiny for tiny, else fast)",
    )
    add_set(parser)
    parser.add_argument(
        "--resolution", type=resolution, metavar="FxHxW", help="frames, height, width, e.g. 33x240x416 (the preset's)"
    )
    parser.add_argument("--micro-batch", type=number_between(1, 1024), help="videos at once, sampled and trained")
    parser.add_argument("--references", type=number_between(1, 8), default=2, help="people per video (default: 2)")
    parser.add_argument(
        "--phases", nargs="+", choices=tuple(PHASES), default=tuple(PHASES), help="what is measured (default: all)"
    )
    parser.add_argument("--repeats", type=number_between(1, 1000), default=3, help="the median of so many (default: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too, after every phase")


def resolution(text: str) -> dict[str, int]:
    """`33x240x416` as the settings of a video, for `type=` of an argument."""
    found = RESOLUTION.fullmatch(text)
    if not found:
        raise ArgumentTypeError(f"`{text}` is not FRAMESxHEIGHTxWIDTH, e.g. 33x240x416")
    return dict(zip(("frames", "height", "width"), map(int, found.groups()), strict=True))


def main(options: Namespace) -> int:
    """Print the table as it grows; 0, or 1 when a phase failed for another reason than memory."""
    config = config_of(options)
    from ..bench.measure import OUT_OF_MEMORY, measure
    from ..bench.models import make_policy, make_reward
    from ..bench.phases import PICTURES, Workload
    from ..bench.rates import matmul_rates
    from ..bench.report import Report, machine
    from .progress import quiet_libraries

    quiet_libraries()
    device = device_of(options.device)
    report = Report(options.size, options.policy, options.references, config, machine(device))
    say(f"{report.machine['device']}, torch {report.machine['torch']}")
    say("matrix products")
    report.rates = matmul_rates(device)
    say(", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in report.rates.items()))
    say(f"weights of {options.policy} {options.size}")
    policy = make_policy(options.size, options.policy, config, device)
    reward = None
    if "score" in options.phases:
        say("weights of the reward")
        reward = make_reward(options.size, config, device)
    workload = Workload(policy, reward, config, options.references, PICTURES[options.size])
    say("encoding a first item")
    workload.warm_caches()
    for phase in workload.phases(options.phases):
        say(phase.name)
        report.rows.append(measure(phase, device, options.repeats))
        _save(report, options.json)
        say("  " + _short(report))
    print(markdown_table(report.table()), flush=True)
    return int(any(row.error and row.error != OUT_OF_MEMORY for row in report.rows))


def config_of(options: Namespace) -> TrainConfig:
    """The preset's settings with those of the options. Raises UserError for impossible ones."""
    tiny = options.size == "tiny"
    changes: dict[str, Any] = {}
    if options.resolution:
        changes["video"] = options.resolution
    if options.micro_batch:
        changes |= {name: {"micro_batch": options.micro_batch} for name in ("rollout", "optim")}
    if tiny:
        changes["policy"] = {"source": "tinyworld" if options.policy == "vace" else "tinyworld-phantom"}
    recipe = options.preset or ("tiny" if tiny else "fast")
    return make_config(preset_for(recipe, options.policy), merge(changes, parse_settings(options.set)))


def device_of(name: str | None) -> torch.device:
    """The device that was asked for, else the one a run would use. Raises UserError when it is missing."""
    import torch
    from accelerate import PartialState

    from ..errors import UserError

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; leave the option out, or install torch with CUDA")
    return PartialState(cpu=name == "cpu").device


def say(text: str) -> None:
    """A line on standard error: the table alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _short(report: Report) -> str:
    from ..bench.report import table_row

    cells = table_row(report.rows[-1], report.rates)
    return ", ".join(f"{name} {value}" for name, value in cells.items() if name not in ("phase",))


def _save(report: Report, path: Path | None) -> None:
    if path:
        report.write(path)
