"""Runs small enough for a test, in processes of their own that can be killed.

As a program it imports torch once and then forks a process per line of its standard input (see `Job`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

SMALL = {
    "iterations": 2,
    "video": {"height": 16, "width": 16, "frames": 5},
    "rollout": {
        "steps": 3,
        "group_size": 2,
        "groups_per_update": 2,
        "updates_per_iteration": 2,
        "micro_batch": 4,
        "window": {"kind": "random", "size": 1, "last": 2},
    },
    "optim": {"micro_batch": 4},
    "lora": {"rank": 2, "alpha": 2},
    "ema": {"every": 1},
    "evaluation": {"items": 2, "steps": 2, "every": 10},
}


@dataclass(frozen=True)
class Job:
    """Train the run in `folder`, in so many `processes` as accelerate's launcher would start.

    `fault` happens in the middle of that phase of iteration `iteration` (counted from 0): rollout, update and
    checkpoint are ended by SIGKILL, `interrupt` is a Ctrl-C in the second update, `error` raises in the last process
    only. `file_size`: bytes that a file may have, as on a full disk.
    `call`: in place of training, the function `module:name` is called with `argument` in every process.
    """

    folder: str
    resume: bool = False
    processes: int = 1
    fault: str | None = None
    iteration: int = 1
    file_size: int | None = None
    call: str | None = None
    argument: str = ""


class Forge:
    """The program, seen from a test."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        self.errors = folder / "errors.txt"
        self.program = subprocess.Popen(
            [sys.executable, __file__, str(self.errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, run: Any, **options: Any) -> int:
        """Begin a job; its (first) process id."""
        print(json.dumps(asdict(Job(str(run.path), **options))), file=self.program.stdin, flush=True)
        return json.loads(self.program.stdout.readline())

    def wait(self) -> list[int]:
        """The exit codes of the job's processes: negative for a signal."""
        return json.loads(self.program.stdout.readline())

    def run(self, run: Any, **options: Any) -> list[int]:
        self.start(run, **options)
        return self.wait()

    def call(self, function: str, argument: str, processes: int = 2) -> list[int]:
        """Call `module:name` in processes that can exchange tensors; their exit codes."""
        print(
            json.dumps(asdict(Job("", processes=processes, call=function, argument=argument))),
            file=self.program.stdin,
            flush=True,
        )
        self.program.stdout.readline()
        return self.wait()

    def close(self) -> None:
        self.program.stdin.close()
        self.program.wait(60)


def main() -> None:
    import diffusers
    import torch
    import transformers
    from peft.tuners import lora
    from torch.distributed import fsdp

    from trainers.grpo import trainer
    from trainers.parity import cases
    from trainers.pictures import clips
    from trainers.policies import phantom, vace
    from trainers.rewards import identity
    from trainers.runs.folder import RunFolder
    from trainers.runs.inputs import run_inputs

    # What is here already no child has to import again.
    assert all(
        (
            clips,
            identity,
            trainer,
            lora,
            fsdp,
            phantom,
            vace,
            cases,
            diffusers.AutoencoderKLWan,
            diffusers.WanTransformer3DModel,
            diffusers.WanVACETransformer3DModel,
            transformers.PreTrainedTokenizerFast,
            transformers.Qwen2_5_VLModel,
            transformers.UMT5EncoderModel,
        )
    )
    torch.set_num_threads(1)
    gc.freeze()  # a collection of garbage in a child would copy the memory of all these modules
    inputs = {}
    with open(sys.argv[1], "ab", buffering=0) as errors:
        for line in sys.stdin:
            job = Job(**json.loads(line))
            config = None if job.call else RunFolder(job.folder).config()
            if config and config.prompts not in inputs:
                inputs[config.prompts] = run_inputs(config)  # looks for faces, once
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            given = (config, inputs[config.prompts] if config else None)
            children = [os.fork() or _child(job, rank, port, errors.fileno(), *given) for rank in range(job.processes)]
            print(json.dumps(children[0]), flush=True)
            print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _child(job: Job, rank: int, port: int, errors: int, config: Any, inputs: Any) -> NoReturn:
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    code = 1
    try:
        if job.processes > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(job.processes),
                LOCAL_WORLD_SIZE=str(job.processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        if job.file_size:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_size, job.file_size))
        _call(job) if job.call else _train(job, rank, config, inputs)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def _call(job: Job) -> None:
    import torch

    torch.distributed.init_process_group("gloo")
    module, _, name = job.call.partition(":")
    getattr(importlib.import_module(module), name)(job.argument)


def _train(job: Job, rank: int, config: Any, inputs: Any) -> None:
    from trainers.grpo.trainer import train
    from trainers.runs.folder import RunFolder

    if job.fault:
        _arrange(job.fault, job.iteration, rank == job.processes - 1)
    train(config, RunFolder(job.folder), inputs, job.resume)


def _arrange(fault: str, iteration: int, last: bool) -> None:
    """Wrap what a phase calls, so that its second call in that iteration is the fault."""
    from trainers.errors import UserError
    from trainers.grpo import checkpoint, trainer
    from trainers.grpo.rollout import RolloutWorker
    from trainers.grpo.update import PolicyUpdate

    collect, accumulate = RolloutWorker.collect, PolicyUpdate.accumulate

    class Doomed(trainer.Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            RolloutWorker.collect = lambda worker, *given: self._with(
                ("rollout", "error"), iteration, self.policy, "velocity", lambda *g: collect(worker, *g), given
            )
            PolicyUpdate.accumulate = lambda update, *given, on_policy: self._with(
                ("update",) if on_policy else ("update", "interrupt"),
                iteration,
                self.policy,
                "velocity",
                lambda *g: accumulate(update, *g, on_policy=on_policy),
                given,
            )

        def _save(self, *arguments, **options):
            save = super()._save
            return self._with(
                ("checkpoint",), iteration + 1, checkpoint, "save_file", lambda: save(*arguments, **options), ()
            )

        def _with(self, faults, due, owner, attribute, method, arguments):
            if fault not in faults or self.state.iteration != due:
                return method(*arguments)
            original, calls = getattr(owner, attribute), []

            def counted(*args, **kwargs):
                calls.append(None)
                if len(calls) == 2:
                    if fault != "error":
                        os.kill(os.getpid(), signal.SIGINT if fault == "interrupt" else signal.SIGKILL)
                    elif last:
                        raise UserError("a fault of the last process")
                return original(*args, **kwargs)

            setattr(owner, attribute, counted)
            try:
                return method(*arguments)
            finally:
                setattr(owner, attribute, original)

    trainer.Trainer = Doomed


if __name__ == "__main__":
    main()
