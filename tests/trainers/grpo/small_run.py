"""A run small enough for a test, on TinyWorld's real models; also a program, so that tests can kill it.

    python small_run.py FOLDER RUN_ID [start|resume] [--set KEY=VALUE ...] [--die rollout|update|checkpoint] [--iteration N]

`--die` sends SIGKILL to itself in the middle of that phase of the iteration.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from trainers.config import TrainConfig, make_config
from trainers.runs.folder import RunFolder

SMALL = {
    "iterations": 2,
    "rollout": {"steps": 3, "group_size": 2, "groups_per_update": 2, "updates_per_iteration": 2, "micro_batch": 4,
                "window": {"kind": "random", "size": 1, "last": 2}},
    "optim": {"micro_batch": 4},
    "lora": {"rank": 2, "alpha": 2},
    "ema": {"every": 1},
    "evaluation": {"items": 2, "steps": 2, "every": 10},
}


def merged(base: dict, changes: dict) -> dict:
    return base | {k: merged(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in changes.items()}


def small_config(**changes) -> TrainConfig:
    return make_config("tiny", merged(SMALL, changes))


def die_in(phase: str, iteration: int) -> None:
    """Arrange for SIGKILL in the middle of a phase of an iteration (counted from 0), by wrapping what that phase calls."""
    from trainers.grpo import checkpoint, loop

    class Doomed(loop.Trainer):
        def _rollouts(self, *arguments):
            return self._calls("rollout", self.policy, "velocity", 4, super()._rollouts, arguments)

        def _updates(self, *arguments):
            return self._calls("update", self.policy, "velocity", 2, super()._updates, arguments)

        def _save(self):
            return self._calls("checkpoint", checkpoint, "save_file", 2, super()._save, ())

        def _calls(self, name, owner, attribute, number, method, arguments):
            due = self.progress.iteration - (name == "checkpoint") == iteration
            if name != phase or not due:
                return method(*arguments)
            original, left = getattr(owner, attribute), [number]

            def counted(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            setattr(owner, attribute, counted)
            return method(*arguments)

    loop.Trainer = Doomed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mode", choices=["start", "resume"])
    parser.add_argument("--die", choices=["rollout", "update", "checkpoint"])
    parser.add_argument("--iteration", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from trainers.grpo.loop import train

    if options.die:
        die_in(options.die, options.iteration)
    run = RunFolder(options.folder)
    print(train(run.config(), run, resume=options.mode == "resume"))


if __name__ == "__main__":
    main()
