"""`reward bench`: what training a reward of the real size costs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from ..errors import UserError
from .numbers import number_between
from .tables import markdown_table

PLANS = ("full", "recompute", "low-memory")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b", help="of the reward (default: 3b)")
    parser.add_argument(
        "--plans",
        nargs="+",
        choices=PLANS,
        default=list(PLANS),
        help="full: as published; recompute: without kept activations; low-memory: the vision tower by LoRA too",
    )
    parser.add_argument("--limit", type=number_between(1, 1000, float), help="GiB of GPU memory, enforced")
    parser.add_argument("--batch-size", type=number_between(1, 64), default=4, help="pairs of an update (default: 4)")
    parser.add_argument("--micro-batch", type=number_between(1, 64), default=1, help="pairs at a time (default: 1)")
    parser.add_argument("--updates", type=number_between(1, 100), default=3, help="counted ones (default: 3)")
    parser.add_argument("--height", type=number_between(28, 2048), default=480)
    parser.add_argument("--width", type=number_between(28, 2048), default=832)
    parser.add_argument("--references", type=number_between(1, 8), default=2)


def main(options: Namespace) -> int:
    """Print a row for each plan; one that does not fit into --limit says so."""
    import torch

    from ..bench.reward_training import measure_training
    from ..preference.recipe import RewardTraining
    from .progress import quiet_libraries

    quiet_libraries()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and options.size != "tiny":
        raise UserError("a reward of 3 billion numbers is measured on a GPU, and there is none; give --size tiny")
    half = device.type == "cuda"
    base = RewardTraining(
        steps=1,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        mixed_precision=half,
        frozen=torch.bfloat16 if half else torch.float32,
    )
    changes = {"full": {}, "recompute": {"recompute": True}, "low-memory": {"recompute": True, "vision": "lora"}}
    rows, failed = [], False
    for plan in options.plans:
        try:
            found = measure_training(
                plan,
                replace(base, **changes[plan]),
                "tiny" if options.size == "tiny" else "1.3b",
                device,
                (81, options.height, options.width),
                options.references,
                options.updates,
                options.limit,
            )
        except UserError as error:
            failed = True
            print(error)
            continue
        rows.append(
            {
                "plan": found.name,
                "trained (million)": f"{found.trained:.0f}",
                "update s": f"{found.seconds:.2f}",
                "s per pair": f"{found.seconds / found.pairs:.2f}",
                "GPU memory GiB": "" if found.memory is None else f"{found.memory:.1f}",
            }
        )
        print(markdown_table(rows[-1:]), flush=True)
    name = torch.cuda.get_device_name(device) if half else "CPU"
    print(f"\n{name}, {options.size}, clips {options.width}x{options.height}, {options.references} references")
    if rows:
        print(markdown_table(rows))
    return 1 if failed and not rows else 0
