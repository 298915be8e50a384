"""Starting and ending a ComfyUI server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import pytest
from PIL import Image

from comfy_client import Client
from trainers.prompts import PromptItem
from trainers.runs.folder import RunFolder
from trainers.runs.launcher import stop
from trainers.runs.registry import is_alive, list_runs
from trainers.tinyworld.prompts import tiny_prompt_set

REPOSITORY = Path(__file__).parents[2]
STARTUP_SECONDS = 300


@contextmanager
def serving(folder: Path, python: Path, base: Path, *options: str) -> Iterator[Client]:
    """A server with the files in `base` for the block; ended as by Ctrl-C."""
    pack = base / "custom_nodes" / "identity-grpo"
    if not pack.exists():
        pack.parent.mkdir()
        pack.symlink_to(REPOSITORY, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "server.log"
    command = [
        python,
        folder / "main.py",
        *options,
        "--disable-api-nodes",
        "--disable-auto-launch",
        "--base-directory",
        base,
        "--port",
        str(port),
        "--preview-method",
        "latent2rgb",
        "--database-url",
        f"sqlite:///{base}/comfyui.db",
    ]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=base, stdout=out, stderr=subprocess.STDOUT, env=environment)
    client = Client(port, base, log)
    try:
        wait_until_up(process, client)
        yield client
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_up(process: subprocess.Popen, client: Client) -> None:
    until = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"ComfyUI ended with {process.returncode}:\n{client.log[-5000:]}")
        try:
            client.get("/system_stats")
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"ComfyUI does not answer after {STARTUP_SECONDS} s:\n{client.log[-5000:]}")


def runs_in(base: Path) -> list[RunFolder]:
    """The runs of a ComfyUI with its files in `base`, oldest first."""
    return list_runs(base / "user" / "__identity_grpo" / "runs")


@contextmanager
def ending_runs(base: Path) -> Iterator[Path]:
    """Stop the runs of the block at its end: they outlive the server."""
    try:
        yield base
    finally:
        for run in runs_in(base):
            if is_alive(run):
                stop(run, 5)


@contextmanager
def deleting_runs(comfyui: Client) -> Iterator[None]:
    """Stop and delete the runs of the block at its end."""
    before = {run.id for run in runs_in(comfyui.base)}
    try:
        yield
    finally:
        for run in runs_in(comfyui.base):
            if run.id not in before:
                stop(run, 5)
                shutil.rmtree(run.path)
                shutil.rmtree(comfyui.base / "models" / "loras" / "identity_grpo" / run.id, ignore_errors=True)


def two_people(comfyui: Client) -> PromptItem:
    """An item of TinyWorld with two people, its pictures in ComfyUI's input folder."""
    found = next(i for i in tiny_prompt_set("held_out", 8) if len(i.references) == 2)
    for index, picture in enumerate(found.references):
        Image.fromarray(picture).save(comfyui.base / "input" / f"person{index}.png")
    return found
