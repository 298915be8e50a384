"""`reward train`: a reward from pairs with votes."""

from __future__ import annotations

import json
import math
import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TINYWORLD_WEIGHTS
from ..errors import UserError
from ..files import write_atomic
from ..runs.machines import MOST_PROCESSES
from ..runs.progress import ProgressReport
from .numbers import number_between
from .options import require_gpus
from .progress import Bar, Lines, open_display, quiet_libraries
from .several import as_one_of_several, is_one_of_several, start_again
from .tables import markdown_table

if TYPE_CHECKING:
    import torch

    from ..preference.pairs import Accuracy, Pair
    from ..preference.recipe import RewardTraining
    from ..ranks import Ranks

TINYWORLD = "tinyworld"
TINYWORLD_BASE = TINYWORLD_WEIGHTS / "reward" / "base_model"
REMEDY = "the training continues from its last saved state with --resume"
HELD_OUT, EVALUATIONS = 0.15, 10
UNUSED_IN_MAKING = {
    "automatic": None,
    "held_out": HELD_OUT,
    "test": None,
    "recipe": None,
    "epochs": None,
    "micro_batch": None,
    "rank": None,
    "alpha": None,
    "vision": None,
    "low_memory": False,
    "evaluations": EVALUATIONS,
    "patience": None,
    "save_every": None,
    "resume": False,
}
"""Options that have no effect on TinyWorld's own reward, and their defaults."""
SETTINGS = ("batch_size", "micro_batch", "learning_rate", "rank", "alpha", "vision", "seed", "patience", "save_every")
"""Options that are settings of `RewardTraining`."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "pairs",
        nargs="+",
        help=f"folders of pairs with votes; `{TINYWORLD}`: pairs of its renderer, from which its own reward is made",
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder of the reward")
    parser.add_argument(
        "--base-model", help=f"Qwen2.5-VL folder (default: the one of --start); `{TINYWORLD}`: its small base"
    )
    parser.add_argument("--start", type=Path, help="a reward to begin with, e.g. the released one (default: the base)")
    parser.add_argument(
        "--automatic",
        type=Path,
        help="folder of pairs that no person voted on: a teacher trained on PAIRS filters them, then both are mixed",
    )
    parser.add_argument(
        "--held-out", type=held_out_share, default=HELD_OUT, help="share of PAIRS, by people (default: 0.15)"
    )
    parser.add_argument("--test", type=Path, help="folder of pairs to measure on, in place of --held-out")
    parser.add_argument(
        "--recipe", choices=("paper", "tiny"), help=f"default: paper, the released reward's; for `{TINYWORLD}` tiny"
    )
    parser.add_argument("--epochs", type=number_between(0.01, 1000, float), help="default: 3")
    parser.add_argument("--steps", type=number_between(1, 10**7), help="in place of --epochs")
    parser.add_argument("--minutes", type=number_between(0.01, 10**5, float), help="end after so many")
    parser.add_argument("--batch-size", type=number_between(1, 4096), help="pairs of an update")
    parser.add_argument("--micro-batch", type=number_between(1, 4096), help="pairs that are computed at a time")
    parser.add_argument("--learning-rate", type=number_between(1e-9, 1, float))
    parser.add_argument("--rank", type=number_between(1, 1024), help="of the LoRA; paper: 64")
    parser.add_argument("--alpha", type=number_between(1, 4096), help="of the LoRA; paper: 128")
    parser.add_argument(
        "--vision", choices=("full", "lora"), help="the vision tower in full (default, as published) or by LoRA"
    )
    parser.add_argument("--low-memory", action="store_true", help="24 GB: vision tower by LoRA, activations recomputed")
    parser.add_argument(
        "--evaluations", type=number_between(0, 1000), default=EVALUATIONS, help="of the held-out pairs (10)"
    )
    parser.add_argument("--patience", type=number_between(0, 1000), help="end after so many without a lower loss")
    parser.add_argument("--save-every", type=number_between(0, 10**6), help="steps between two saved states")
    parser.add_argument("--resume", action="store_true", help="continue the training that was interrupted in --out")
    parser.add_argument("--seed", type=number_between(0, 2**31), help="default: 42")
    parser.add_argument(
        "--processes", type=number_between(1, MOST_PROCESSES), default=1, help="one per GPU (default: 1)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    own = parser.add_argument_group(f"for `{TINYWORLD}`")
    own.add_argument(
        "--pairs-sampled", type=number_between(0, 10**5), default=400, help="items its policy samples (400)"
    )
    own.add_argument("--loras", type=Path, nargs="*", default=[], help="sample with each of these LoRAs too")
    own.add_argument("--policy", type=Path, help="folder of the policy that samples (default: TinyWorld's VACE)")
    own.add_argument("--few", type=number_between(0, 10**5), default=0, help="so few pairs that it is easily hacked")
    own.add_argument(
        "--measured-on", type=number_between(1, 10**5), default=1000, help="held-out pairs (default: 1000)"
    )


def held_out_share(text: str) -> float:
    """For `type=`: a number from 0 to 0.9."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 0.9:
        raise ArgumentTypeError(f"`{text}` is not a share from 0 to 0.9")
    return value


def main(options: Namespace) -> int:
    """Train, measure on the held-out pairs, and write the reward with its calibration curve."""
    making = options.pairs == [TINYWORLD]
    if options.processes == 1 or is_one_of_several():
        return as_one_of_several(lambda: (_make_tinyworlds if making else _train)(options))
    if not making:
        _read_inputs(options)  # what cannot be used is refused before processes are started
    if options.device != "cpu":
        require_gpus(options.processes)
    return start_again(options.processes, options.device == "cpu", REMEDY)


@dataclass(frozen=True)
class _Inputs:
    """The base model's folder, and the pairs: those to train on, those held out, and those that no person voted on."""

    base: Path
    voted: Sequence[Pair]
    held_out: Sequence[Pair]
    automatic: Sequence[Pair] | None


def _read_inputs(options: Namespace) -> _Inputs:
    """Raises UserError for what cannot be trained on, and for a folder that the reward cannot be written to."""
    base = base_of(options.base_model, options.start)
    from ..preference.folder import PairFolder
    from ..preference.stored import Part, StoredPairs, hold_out
    from ..preference.train import STATES, require_resumable, require_untrained

    merged = _Joined([StoredPairs(PairFolder(Path(folder))) for folder in options.pairs])
    if not len(merged):
        raise UserError(f"{', '.join(options.pairs)} has no pair with a verdict; vote first")
    train, held = list(range(len(merged))), []
    if options.held_out and not options.test:
        train, held = hold_out(merged.records, options.held_out)
    held_out = StoredPairs(PairFolder(options.test)) if options.test else Part(merged, held)
    automatic = StoredPairs(PairFolder(options.automatic)) if options.automatic else None
    require_untrained(options.out)
    if automatic is None:  # else the teacher's training may be the one to resume
        require_resumable(options.out / STATES, options.resume)
    return _Inputs(base, Part(merged, train), held_out, automatic)


def _train(options: Namespace) -> int:
    found = _read_inputs(options)
    from ..preference.stages import train_in_two_stages
    from ..preference.train import train_reward
    from ..ranks import Ranks

    ranks = Ranks()
    device = device_of(ranks, options.device)
    settings = settings_of(options, found.base, device)
    print(f"{len(found.voted)} pairs to train on, {len(found.held_out)} held out; base model {found.base}", flush=True)
    quiet_libraries()
    log: list[dict[str, Any]] = []
    extra = {"start": options.start, "resume": options.resume, "ranks": ranks}
    with closing(open_display()) as show:
        common = (device, found.held_out, _Reporter(show, log))
        if found.automatic is None:
            made = train_reward(found.base, found.voted, options.out, settings(len(found.voted)), *common, **extra)
        else:
            done = train_in_two_stages(
                found.base, found.voted, found.automatic, options.out, settings, *common, **extra
            )
            show.line(f"the teacher agrees with {done.kept} of {done.automatic} automatic pairs")
            made = done.reward
    if ranks.is_main:
        written = {"steps": made.steps, "seconds": round(made.seconds, 1), "loss": made.loss, "log": log}
        if made.accuracy:
            written["held_out"] = measure_files(options.out, found.base, found.held_out, device, settings(1).frozen)
        write_atomic(options.out / "training.json", json.dumps(written, indent=1) + "\n")
        print(f"reward: {options.out} (checkpoint-{made.steps}, {made.seconds:.0f} s)")
    ranks.close()
    return 0


class _Joined:
    """Several folders of pairs as one list; a pair that two of them hold counts once, from the first."""

    def __init__(self, folders: list) -> None:
        self.places: list[tuple[Any, int]] = []
        seen: set[str] = set()
        for folder in folders:
            for place, record in enumerate(folder.records):
                if record.pair not in seen:
                    seen.add(record.pair)
                    self.places.append((folder, place))

    @property
    def records(self) -> list:
        return [folder.records[place] for folder, place in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int):
        folder, place = self.places[index]
        return folder[place]


def base_of(base_model: str | None, start: Path | None) -> Path:
    """The base model's folder. Raises UserError when none is named or it is not there."""
    from ..rewards.folder import find_base, find_checkpoint

    if base_model == TINYWORLD:
        return TINYWORLD_BASE
    if base_model is None and start is None:
        raise UserError("no base model is named; give --base-model QWEN_FOLDER, or a reward to begin with (--start)")
    if start is not None:
        return find_base(find_checkpoint(start), base_model)
    if not os.path.isfile(Path(base_model) / "config.json"):
        raise UserError(f"the base model {base_model} holds no config.json; give a Qwen2.5-VL folder")
    return Path(base_model)


def settings_of(options: Namespace, base: Path, device: torch.device) -> Callable[[int], RewardTraining]:
    """The settings for a number of pairs: the recipe, changed by the options that were given."""
    from ..preference.recipe import RewardTraining

    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    recipe = adapted_recipe(
        options.recipe or usual_recipe(base), base, device, options.low_memory, options.start, given
    )
    epochs = options.epochs or recipe["epochs"]
    del recipe["epochs"]
    if options.minutes:
        recipe["seconds"] = options.minutes * 60

    def settings(pairs: int) -> RewardTraining:
        steps = options.steps or max(1, math.ceil(epochs * pairs / recipe["batch_size"]))
        every = max(1, steps // options.evaluations) if options.evaluations else 0
        return RewardTraining(steps=steps, **{"evaluate_every": every, "save_every": every} | recipe)

    return settings


def usual_recipe(base: Path) -> str:
    """`tiny` for TinyWorld's base model, `paper` for all others."""
    return "tiny" if base == TINYWORLD_BASE else "paper"


def adapted_recipe(
    name: str, base: Path, device: torch.device, low_memory: bool, start: Path | None, given: dict[str, Any]
) -> dict[str, Any]:
    """The recipe `name` for this base and device, with the settings that were given, and the rank of `start`."""
    import torch

    from ..preference.adapters import adapter_of
    from ..preference.recipe import RECIPES

    half = device.type == "cuda"
    frozen = torch.bfloat16 if half and base != TINYWORLD_BASE else torch.float32
    recipe = RECIPES[name] | {"mixed_precision": half, "frozen": frozen}
    if low_memory:
        recipe |= {"vision": "lora", "recompute": True, "micro_batch": 1}
    recipe |= given
    if start:
        adapter = adapter_of(start)
        recipe |= {"rank": adapter.r, "alpha": adapter.lora_alpha} if adapter else {}
    return recipe


def measure_files(out: Path, base: Path, held_out, device, dtype) -> dict[str, Any]:
    """The accuracy of the written files, printed, with the calibration curve as a picture."""
    from ..pictures.calibration import plot_calibration
    from ..preference.pairs import agreement, calibration, calibration_error, score_pairs
    from ..rewards.identity import IdentityReward

    scored = score_pairs(IdentityReward.load(out, base, dtype, device), held_out)
    found, bins = agreement(scored), calibration(scored)
    print(accuracy_table(found))
    error = calibration_error(bins)
    picture = plot_calibration([(b.predicted, b.observed, b.count) for b in bins], out / "calibration.png", error)
    print(f"calibration error {error:.3f}; curve: {picture}")
    return asdict(found) | {"calibration": [asdict(b) for b in bins], "calibration_error": error}


def accuracy_table(found: Accuracy) -> str:
    """Accuracy with and without ties, and by kind, as a table."""
    decided = f"{found.without_ties:.1%}" if found.decided else ""
    rows = [
        {"pairs": "all, ties predicted too", "number": found.pairs, "accuracy": f"{found.with_ties:.1%}"},
        {"pairs": "decided ones", "number": found.decided, "accuracy": decided},
    ]
    rows += [{"pairs": f"  {kind}", "number": "", "accuracy": f"{value:.1%}"} for kind, value in found.by_kind.items()]
    return markdown_table(rows)


class _Reporter:
    """Shows every step with the time left, prints a line for every evaluation, and keeps all events but steps, of which
    it keeps the mean loss."""

    def __init__(self, show: Bar | Lines, log: list[dict[str, Any]]) -> None:
        self._show, self._log, self._losses, self._mean = show, log, [], math.nan

    def __call__(self, event: dict[str, Any]) -> None:
        if "accuracy" not in event:
            self._losses.append(event["loss"])
            step, steps, done, seconds = (event[name] for name in ("step", "steps", "fraction", "seconds"))
            self._show(ProgressReport(step, steps, "training", done, seconds / done * (1 - done)))
            return
        found = event["accuracy"]
        if self._losses:  # the last measurement, of what is written, follows no new step
            self._mean = sum(self._losses) / len(self._losses)
            self._losses.clear()
        mean = self._mean
        self._log.append({"step": event["step"], "loss": mean, "held_out": found})
        self._show.line(
            f"step {event['step']}: loss {mean:.4f}, held-out loss {found['loss']:.4f}, "
            f"accuracy {found['without_ties']:.1%} ({found['with_ties']:.1%} with ties)"
        )


def device_of(ranks: Ranks, name: str | None) -> torch.device:
    """The device of this process; `name`: what `--device` asks for."""
    import torch

    return torch.device("cpu") if name == "cpu" else ranks.device


def _make_tinyworlds(options: Namespace) -> int:
    unused = [name for name, default in UNUSED_IN_MAKING.items() if getattr(options, name) != default]
    if unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UserError(f"`{TINYWORLD}` makes its reward in its own way, without {names}; leave that out")
    from ..ranks import Ranks
    from ..tinyworld.making.train_reward import REWARD_RATE, make_reward

    make_reward(
        options.out,
        device_of(Ranks(), options.device),
        options.minutes or 8.0,
        options.steps or 6000,
        options.batch_size or 128,
        options.measured_on,
        1 if options.seed is None else options.seed,
        options.policy,
        options.pairs_sampled,
        base_of(options.base_model, options.start) if options.base_model or options.start else None,
        options.loras,
        options.few,
        options.start,
        options.learning_rate or REWARD_RATE,
    )
    return 0
