"""Processes of runs that start at once: forks of one that has imported what training needs.

A fork calls the same `work` as a process that the launcher starts. Its clock can be moved, and at SIGUSR1 a fork of
root loses the right to write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from trainers.runs.folder import RunFolder

PROGRAM = """
import gc, json, os, signal, sys, time, traceback
from pathlib import Path
import torch, accelerate, peft, matplotlib.pyplot
import trainers.commands.work, trainers.faces.judge, trainers.grpo.trainer, trainers.pictures.curves
import trainers.policies.vace, trainers.rewards.identity, trainers.runs.inputs
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACETransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel
from trainers.cli import main
from trainers.runs.folder import RunFolder

def shift_clock(file):
    now = time.time
    time.time = lambda: now() + float(file.read_text())

def work(order):
    run = RunFolder(order["run"])
    os.setsid()
    for stream, target in ((0, os.devnull), (1, run.log_file), (2, run.log_file)):
        os.dup2(os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666), stream)
    os.chdir(run.path)
    signal.signal(signal.SIGUSR1, lambda *_: os.seteuid(65534))
    if order["clock"]:
        shift_clock(Path(order["clock"]))
    run.set_status(state="starting", group=os.getpid(), last_error="", message="", slowest_seconds=None)
    return main(["work", str(run.path), *["--resume"] * order["resume"]])

def collect(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, collect)
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 1
    try:
        status = work(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
"""


class Forks:
    """Forks processes of runs, each a leader of its own session, as the launcher's are."""

    def __init__(self, repository: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, run: RunFolder, resume: bool = False, clock: Path | None = None) -> int:
        """Start a process of the run; returns its pid. `clock`: a file with the seconds by which its clock is wrong."""
        run.prepare()
        order = {"run": str(run.path), "resume": resume, "clock": str(clock) if clock else None}
        if self._process.poll() is None:
            print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        while line == "ready\n":
            line = self._process.stdout.readline()
        return int(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
