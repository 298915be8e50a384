"""Commands are tried on small models, in a folder of their own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from trainers.cli import main
from trainers.preference.folder import PairFolder
from trainers.runs.folder import RunFolder
from trainers.runs.registry import list_runs

ROLLOUT = "{steps: 3, group_size: 2, groups_per_update: 2, micro_batch: 4, window: {kind: random, size: 1, last: 2}}"


@pytest.fixture
def small(small_models) -> list[str]:
    """Arguments of `train` for two iterations on the small models."""
    return [
        *("--preset", "tiny", "--iterations", "2"),
        *("--set", f"rollout={ROLLOUT}", "--set", "lora={rank: 2, alpha: 2}"),
        *("--set", "evaluation={items: 2, steps: 2}", "--set", "video={height: 16, width: 16, frames: 5}"),
        *("--policy", small_models["policy"]["source"], "--reward", small_models["reward"]["source"]),
        *("--set", f"reward.base_model={small_models['reward']['base_model']}"),
        *("--prompts", small_models["prompts"], "--held-out", str(small_models["held_out"])),
    ]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder the user stands in, with device locks of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.argv", ["__main__.py"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def only_run(here) -> Callable[[], RunFolder]:
    """Finds the one run below `here`."""

    def find() -> RunFolder:
        (run,) = list_runs(here / "runs")
        return run

    return find


@pytest.fixture
def background(here, repository, default_signals) -> Callable[..., subprocess.Popen]:
    """Starts a command in another process, as in another terminal; it is killed when the test ends."""
    children = []

    def start(*arguments: str) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
        command = [sys.executable, "-m", "trainers", *arguments]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, cwd=here, env=environment, stdout=pipe, stderr=pipe, text=True))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def _one_of_several(rank: int, count: int, port: int, words: Sequence[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.exit(main(words))


@pytest.fixture
def in_processes() -> Callable[[int, Sequence[str]], list[int]]:
    """`in_processes(count, words)`: exit statuses of a command in so many processes, as the launcher starts them, but
    forked from this one, which has imported everything."""
    if os.name != "posix":
        pytest.skip("processes are forked")
    context = multiprocessing.get_context("fork")

    def run(count: int, words: Sequence[str]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [context.Process(target=_one_of_several, args=(rank, count, port, words)) for rank in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
            process.kill()
        return [process.exitcode for process in started]

    return run


@pytest.fixture(scope="module")
def bright_votes(tmp_path_factory) -> PairFolder:
    """Twelve pairs of six people: the brighter clip is the better one. Two more have no vote."""
    folder, noise = PairFolder(tmp_path_factory.mktemp("votes") / "pairs"), np.random.default_rng(0)

    def clip(level: int) -> np.ndarray:
        return (level + noise.integers(-20, 21, (4, 28, 28, 3))).clip(0, 255).astype(np.uint8)

    faces = [clip(128)[0] for _ in range(7)]
    for i in range(14):
        clips = (clip(200), clip(60)) if i % 2 else (clip(60), clip(200))
        verdict = None if i > 11 else "A" if i % 2 else "B"
        folder.add(clips, [faces[i // 2]], fps=8.0, verdict=verdict, who="anna", kind="bright")
    return folder
