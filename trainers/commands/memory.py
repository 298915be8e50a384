"""`memory`: the same short run under several limits of GPU memory, against the plan."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.sizes import SIZES, Size
from ..config import PolicyKind, TrainConfig, make_config, preset_for
from ..config.presets import merge
from ..errors import UserError
from .bench import say
from .numbers import number_between
from .options import add_set, parse_settings
from .tables import markdown_table

if TYPE_CHECKING:
    import torch

LIMITS = (24.0, 16.0, 12.0)
REFERENCES = 3  # the most that an item of the prompt sets has


def add_arguments(parser: ArgumentParser) -> None:
    add_trial(parser, "memory-trial")
    parser.add_argument(
        "--limits",
        type=number_between(1, 1024, float),
        nargs="*",
        default=LIMITS,
        metavar="GIB",
        help="beside two runs without a limit (default: 24 16 12); without a GPU there is one run for each plan",
    )


def add_trial(parser: ArgumentParser, folder: str) -> None:
    """The options of short runs that are measured: their models, and the default `folder` that keeps them."""
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="TinyWorld (default), or models of the published sizes with random weights, made on the GPU",
    )
    parser.add_argument("--policy", choices=("vace", "phantom"), default="vace", help="default: vace")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(folder),
        help=f"for the models, which are kept (25 GB for 1.3b), the runs, and the table (default: {folder})",
    )
    parser.add_argument(
        "--reuse", action="store_true", help="keep finished runs of the same settings that an earlier call has made"
    )
    add_set(parser)


def main(options: Namespace) -> int:
    """Print the table as it grows, and write it to `memory.md`; 1 when a run failed."""
    import torch

    from ..bench.limits import outcome, planned, rows, train_once

    cuda, folder = torch.cuda.is_available(), options.folder.absolute()
    models, references = trial_models(options.size, options.policy, folder, torch.device("cuda" if cuda else "cpu"))
    table, first, failed = [], None, False
    for name, memory in _trials(options.limits, cuda):
        config = _config(options, models, memory)
        say(name)
        try:
            run = train_once(folder / "runs", name, config, say, options.reuse)
            first = first or run
            own = list(rows(outcome(name, run, first, planned(config, references))))
        except UserError as error:
            say(str(error))
            failed, own = True, [{"run": name, "phase": f"failed: {str(error).splitlines()[0]}"}]
        table += own
        print(markdown_table(own), flush=True)
        (folder / "memory.md").write_text(markdown_table(table) + "\n", encoding="utf-8")
    say(f"{folder / 'memory.md'}")
    return int(failed)


def _trials(limits: list[float], cuda: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and memory settings of each run. The first is made twice: what differs there is no fault of a plan."""
    yield "resident", {"plan": "resident"}
    yield "resident again", {"plan": "resident"}
    if cuda:
        yield from ((f"{limit:g} GiB", {"limit": limit}) for limit in limits)
    else:
        yield from ((plan, {"plan": plan}) for plan in ("phases", "block_swap"))


def trial_models(
    size: Size, policy: PolicyKind, folder: Path, device: torch.device, short_text: bool = False
) -> tuple[dict[str, Any], int]:
    """The settings that name the models of a trial and its prompts, and the most references of an item.

    `folder` is made, and models of a published size are written into it, with `short_text` a text encoder of one layer.
    Raises UserError for these without a GPU.
    """
    if size != "tiny" and device.type != "cuda":
        raise UserError(f"--size {size}: these models need a GPU; leave --size at tiny")
    folder.mkdir(parents=True, exist_ok=True)
    if size == "tiny":
        return {"policy": {"source": "tinyworld" if policy == "vace" else "tinyworld-phantom"}}, REFERENCES
    from ..bench.sizes import SHORT_TEXT_ENCODER
    from ..bench.written import published, write_models

    sizes, name = published(size, policy), f"{policy}-{size}"
    if short_text:
        sizes, name = replace(sizes, text_encoder=SHORT_TEXT_ENCODER), f"{name}-short-text"
    return write_models(folder / name, sizes, device, say), 2


def _config(options: Namespace, models: dict[str, Any], memory: dict[str, Any]) -> TrainConfig:
    """Raises UserError for impossible settings."""
    from ..bench.limits import RECIPE

    changes = merge(merge(RECIPE, models), parse_settings(options.set))
    recipe = "tiny" if options.size == "tiny" else "fast"
    return make_config(preset_for(recipe, options.policy), merge(changes, {"memory": memory}))
