"""`bench`: seconds, TFLOP/s and memory of every phase of an iteration, on this machine.

Several processes measure at the same time: the slowest counts, and the peaks of all are shown.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.iteration import PHASES
from ..bench.sizes import SIZES
from ..config import RECIPES, TrainConfig, make_config, preset_for
from ..config.presets import merge
from ..errors import UserError
from ..runs.machines import MOST_PROCESSES
from .comfyui import find_comfyui, find_python
from .numbers import number_between
from .options import add_set, parse_settings, require_gpus
from .several import as_one_of_several, is_one_of_several, start_again
from .tables import markdown_table

if TYPE_CHECKING:
    import torch

    from ..bench.measure import Phase, Row
    from ..bench.report import Report
    from ..grpo.ranks import Ranks

MOST_PEOPLE = 8
PEERS = ("diffusers", "comfyui", "published")
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
    parser.add_argument(
        "--references", type=number_between(1, MOST_PEOPLE), default=2, help="people per video (default: 2)"
    )
    parser.add_argument(
        "--phases", nargs="+", choices=tuple(PHASES), default=tuple(PHASES), help="what is measured (default: all)"
    )
    parser.add_argument(
        "--repeats",
        type=number_between(0, 1000),
        default=3,
        help="the median of so many (default: 3); 0: the first run alone, and operations are not counted",
    )
    parser.add_argument(
        "--iteration", action="store_true", help="then a whole iteration of the settings: rollouts, rewards, updates"
    )
    parser.add_argument(
        "--repeat-references",
        type=counts,
        default=(),
        metavar="N,N,...",
        help="then sample with so many people each: shows what a new number of people costs at its first step",
    )
    parser.add_argument(
        "--attention", action="store_true", help="then self-attention alone, by each of the backends that are installed"
    )
    parser.add_argument(
        "--profile", action="store_true", help="then print torch's profile of a sampled and a trained step"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        type=peer,
        default=(),
        metavar="PEER",
        help="then the same work in diffusers, in comfyui (found as `comfyui` finds it), or in published=FOLDER, a "
        "checkout of alibaba/identity-grpo",
    )
    parser.add_argument(
        "--processes",
        type=number_between(1, MOST_PROCESSES),
        default=1,
        help="one per GPU, for memory.plan=sharded and parallel.context (default: 1)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too, after every phase")


def resolution(text: str) -> dict[str, int]:
    """`33x240x416` as the settings of a video, for `type=` of an argument."""
    found = RESOLUTION.fullmatch(text)
    if not found:
        raise ArgumentTypeError(f"`{text}` is not FRAMESxHEIGHTxWIDTH, e.g. 33x240x416")
    return dict(zip(("frames", "height", "width"), map(int, found.groups()), strict=True))


def counts(text: str) -> tuple[int, ...]:
    """`1,2,3` as numbers of people, for `type=` of an argument."""
    return tuple(map(number_between(1, MOST_PEOPLE), text.split(",")))


def peer(text: str) -> tuple[str, str]:
    """Name and folder of another program, for `type=` of an argument."""
    name, _, folder = text.partition("=")
    if name not in PEERS or (name == "published") != bool(folder):
        raise ArgumentTypeError(f"`{text}` is not diffusers, comfyui or published=FOLDER")
    return name, folder


def main(options: Namespace) -> int:
    """Print the table when all is measured; 0, or 1 when a phase failed for another reason than memory."""
    config = config_of(options)
    if options.processes == 1 or is_one_of_several():
        return as_one_of_several(lambda: _measure_and_print(options, config))
    device_of(options.device)
    if options.device != "cpu":
        require_gpus(options.processes)
    return start_again(options.processes, options.device == "cpu")


def measure_ours(options: Namespace, report: Report, device: torch.device, ranks: Ranks) -> None:
    """Add the rows of our phases, then those of other numbers of people; print the profiles."""
    from ..bench.attention import attention_errors, attention_phases
    from ..bench.models import make_policy, make_reward
    from ..bench.phases import PICTURES, Workload
    from ..bench.profile import profile_phase

    config = report.config
    say(f"weights of {options.policy} {options.size}")
    policy = make_policy(options.size, options.policy, config, device, ranks)
    reward = None
    if "score" in options.phases or options.iteration:
        say("weights of the reward")
        reward = make_reward(options.size, config, device)

    def workload(references: int = options.references, **steps: int) -> Workload:
        say(f"encoding an item of {references} people")
        made = Workload(policy, reward, config, references, PICTURES[options.size], ranks=ranks, **steps)
        made.warm_caches()
        return made

    # Without a warm-up the first step is the one that counts.
    own = workload() if options.repeats else workload(timed_steps=1)
    _measure_all(own.phases(options.phases), options, report, device)
    if options.iteration:
        _measure_all([own.whole_iteration()], options, report, device)
    report.ratio_error = own.ratio_error
    if own.ratio_error is not None:
        say(f"ratio error, rollout against training: {own.ratio_error:.2g}")
    for references in options.repeat_references:
        (phase,) = workload(references).phases(["ode"])
        named = replace(phase, name=f"{phase.name}, people: {references}")
        _measure_all([named], options, report, device)
    if options.attention:
        shape = own.attention_shape
        say(f"attention of {' x '.join(map(str, shape))} (sequences, tokens, heads, channels)")
        for name, error in attention_errors(shape, policy.dtype, device).items():
            say(f"  {name}: {error:.2g} of the output away from float64")
        _measure_all(attention_phases(shape, policy.dtype, device), options, report, device)
    if options.profile:
        for phase in workload(timed_steps=1).phases(["ode", "train"]):
            say(f"profile of {phase.name}")
            print(profile_phase(phase, device), flush=True)


def measure_peer(name: str, folder: str, options: Namespace, report: Report, device: torch.device) -> None:
    """Add the rows of another program. Raises UserError when ComfyUI is asked for and cannot be found."""
    arguments = options.size, options.policy, report.config, options.references
    if name == "comfyui":
        from ..bench.peers.comfyui import measure_comfyui, task_of

        place = find_comfyui()
        if place is None:
            raise UserError("--peers comfyui: no ComfyUI was found; set COMFYUI_PATH to its folder")
        python = find_python(place) or Path(sys.executable)
        say(f"ComfyUI in {place}, with {python}")
        _add(measure_comfyui(place, python, task_of(*arguments, options.repeats), device), options, report)
        return
    if name == "diffusers":
        from ..bench.peers.plain_diffusers import PlainDiffusers

        phases = PlainDiffusers(*arguments, device).phases()
    else:
        from ..bench.peers.published import Published

        phases = Published(Path(folder).expanduser(), *arguments, device).phases()
    _measure_all(phases, options, report, device)


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


def join(options: Namespace, config: TrainConfig) -> tuple[torch.device, Ranks]:
    """This process's device, and the processes beside it. Raises UserError when they cannot share the work."""
    from ..grpo.ranks import Ranks

    device = None if is_one_of_several() else device_of(options.device)
    ranks = Ranks(context=config.parallel.context)
    return device or ranks.device, ranks


def device_of(name: str | None) -> torch.device:
    """The device that was asked for, else the one a run would use. Raises UserError when it is missing."""
    import torch
    from accelerate import PartialState

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; leave the option out, or install torch with CUDA")
    return PartialState(cpu=name == "cpu").device


def say(text: str) -> None:
    """A line on standard error: the table alone goes to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _measure_and_print(options: Namespace, config: TrainConfig) -> int:
    from ..bench.measure import OUT_OF_MEMORY, is_out_of_memory, release_memory
    from ..bench.rates import matmul_rates
    from ..bench.report import Report, machine
    from .progress import quiet_libraries

    quiet_libraries()
    device, ranks = join(options, config)
    if not ranks.is_main:
        options.json = None
    report = Report(options.size, options.policy, options.references, config, machine(device))
    say(f"{report.machine['device']}, torch {report.machine['torch']}")
    if ranks.count > 1:
        say(f"{ranks.count} processes, {config.parallel.context} to each video")
    say("matrix products")
    report.rates = matmul_rates(device)
    say(", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in report.rates.items()))
    try:
        measure_ours(options, report, device, ranks)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        say("out of memory while the models were made: nothing more is measured of them")
    for name, folder in options.peers:
        # Only one program's models at a time.
        release_memory(device)
        measure_peer(name, folder, options, report, device)
    print(markdown_table(report.table()), flush=True)
    return int(any(row.error and row.error != OUT_OF_MEMORY for row in report.rows))


def _measure_all(phases: Sequence[Phase], options: Namespace, report: Report, device: torch.device) -> None:
    from accelerate.utils import gather_object

    from ..bench.measure import measure, slowest

    for phase in phases:
        say(phase.name)
        _add(slowest(gather_object([measure(phase, device, options.repeats)])), options, report)


def _add(row: Row, options: Namespace, report: Report) -> None:
    report.rows.append(row)
    if options.json:
        report.write(options.json)
    say("  " + ", ".join(f"{name} {value}" for name, value in report.cells(row).items() if name != "phase"))
