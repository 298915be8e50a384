"""`proof`: the learning claim over several seeds, with its control, as one table that anyone can repeat.

Every seed trains TinyWorld's policy by the `tiny` recipe (PROOF says what is changed) and is measured on the same held-out
items and noise as the untouched policy. The controls are the same runs with the rewards of each group shuffled: random walks,
which may drift either way, so what counts is their mean.
"""

from __future__ import annotations

import math
import subprocess
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from statistics import fmean

from ..config import PolicyKind, TrainConfig, make_config, preset_for
from ..errors import UserError
from ..files import write_atomic
from ..runs.folder import RunFolder
from ..runs.launcher import cores, start, stop
from .options import add_runs_folder, add_set, add_tinyworld_policy, parse_settings
from .tables import markdown_table

PROOF = {
    "iterations": 40,
    "rollout": {"micro_batch": 64},
    "optim": {"micro_batch": 64},
    "evaluation": {"items": 96, "every": 20},
    "checkpoint": {"every": 10},
}
WIN_RATE, IDENTITY_GAIN = 0.75, 0.189
FLAT = {"win": 0.6, "identity_gain": 0.03}


@dataclass(frozen=True)
class Outcome:
    """The last evaluation of one run, and of the untouched policy."""

    name: str
    seed: int
    win: float
    win_low: float
    margin: float
    identity_before: float
    identity_after: float
    alignment_before: float
    alignment_after: float
    seconds: float

    @property
    def identity_gain(self) -> float:
        return self.identity_after / self.identity_before - 1


def proof_config(seed: int, control: bool, changes: dict | None = None, policy: PolicyKind = "vace") -> TrainConfig:
    settings = PROOF | {"seed": seed} | (changes or {})
    return make_config(preset_for("tiny", policy), settings | ({"reward": {"shuffle": True}} if control else {}))


def outcome(run: RunFolder, name: str) -> Outcome:
    """Raises UserError when the run did not reach its last evaluation."""
    evaluations, config = run.evaluations(), run.config()
    if not evaluations or evaluations[-1]["iteration"] != config.iterations:
        status = run.status()
        raise UserError(
            f"run {run.id} did not finish ({status.state}: {status.last_error}); see {run.log_file}\n{run.log_tail(5)}"
        )
    first, last = evaluations[0], evaluations[-1]
    seconds = sum(row["seconds_rollout"] + row["seconds_update"] for row in run.training())
    return Outcome(
        name,
        config.seed,
        last["win"],
        last["win_low"],
        last["margin"],
        first["identity"],
        last["identity"],
        first["alignment"],
        last["alignment"],
        seconds,
    )


def verdicts(tuned: list[Outcome], control: list[Outcome]) -> list[tuple[str, bool]]:
    """The claims, each with whether it holds in every seed."""
    return [
        (
            f"the tuned policy wins at least {WIN_RATE:.0%} of held-out pairs by the reward",
            all(o.win >= WIN_RATE for o in tuned),
        ),
        (
            f"the oracle identity rises by at least {IDENTITY_GAIN:.1%}",
            all(o.identity_gain >= IDENTITY_GAIN for o in tuned),
        ),
        ("text alignment is not lower", all(o.alignment_after >= o.alignment_before - 0.005 for o in tuned)),
        (
            f"shuffled rewards gain nothing{_mean(control)}",
            all(fmean(getattr(o, name) for o in control) < limit for name, limit in FLAT.items()) if control else False,
        ),
    ]


def _mean(control: list[Outcome]) -> str:
    """What the controls came to, in words."""
    if not control:
        return " (no control was run)"
    win, gain = (fmean(getattr(o, name) for o in control) for name in FLAT)
    return f" (mean of {len(control)}: {win:.0%} won, identity {gain:+.1%})"


def rows(outcomes: list[Outcome]) -> list[dict[str, str]]:
    return [
        {
            "run": o.name,
            "seed": str(o.seed),
            "won": f"{o.win:.1%} (from {o.win_low:.1%})",
            "reward margin": f"{o.margin:+.3f}",
            "oracle identity": f"{o.identity_before:.3f} -> {o.identity_after:.3f}",
            "gain": f"{o.identity_gain:+.1%}",
            "text alignment": f"{o.alignment_before:.3f} -> {o.alignment_after:.3f}",
            "seconds": f"{o.seconds:.0f}",
        }
        for o in outcomes
    ]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5, help="trained runs (default: 5)")
    parser.add_argument("--controls", type=int, default=5, help="runs with shuffled rewards (default: 5)")
    parser.add_argument("--jobs", type=int, default=3, help="runs at a time on the device (default: 3)")
    add_tinyworld_policy(parser)
    add_set(parser)
    add_runs_folder(parser, "runs/proof")


def main(options: Namespace) -> int:
    """Run everything, print the table and write it to `<runs>/proof.md`; 0 if every claim holds, else 1."""
    root, changes = options.runs, parse_settings(options.set)
    waiting = [("tuned", s) for s in range(options.seeds)] + [("control", s) for s in range(options.controls)]
    runs: list[tuple[str, RunFolder]] = []
    active: dict[str, subprocess.Popen] = {}
    started = time.time()
    threads = max(1, cores() // options.jobs)
    try:
        while waiting or active:
            active = {run_id: child for run_id, child in active.items() if child.poll() is None}
            while waiting and len(active) < options.jobs:
                name, seed = waiting.pop(0)
                config = proof_config(seed, name == "control", changes, options.policy)
                run = RunFolder.create(root, config, name=f"{name}-{seed}")
                runs.append((name, run))
                active[run.id] = start(run, share_devices=True, threads=threads)
            states = [f"{run.name} {run.status().iteration}/{run.status().iterations}" for _, run in runs]
            print(f"{time.time() - started:5.0f}s  {'  '.join(states)}", flush=True)
            time.sleep(10 if active else 0)
    except KeyboardInterrupt:
        for _, run in runs:
            if run.id in active:
                stop(run)
        raise
    outcomes = [outcome(run, name) for name, run in runs]
    tuned, control = ([o for o in outcomes if o.name == n] for n in ("tuned", "control"))
    held = verdicts(tuned, control)
    text = (
        markdown_table(rows(outcomes))
        + "\n\n"
        + "\n".join(f"- {'holds' if ok else 'FAILS'}: {claim}" for claim, ok in held)
        + "\n"
    )
    write_atomic(root / "proof.md", text)
    print(text)
    return 0 if all(ok for _, ok in held) and not any(math.isnan(o.win) for o in outcomes) else 1
