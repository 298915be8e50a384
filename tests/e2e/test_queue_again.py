"""A workflow that the editor queues again by itself when its training run has ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time

import pytest

from trainers.config import make_config
from trainers.processes import start_token
from trainers.runs.folder import RunFolder


@pytest.fixture
def run(comfyui):
    """A run that ends when its Training Run node has been executed once; a process that only waits stands for it."""
    run = RunFolder.create(comfyui.base / "user" / "__identity_grpo" / "runs", make_config("tiny", {}), "seen")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    run.set_status(state="running", pid=process.pid, pid_started=start_token(process.pid))
    before, given_up = len(comfyui.get("/history")), threading.Event()

    def end_it() -> None:
        while len(comfyui.get("/history")) == before and not given_up.is_set():
            time.sleep(0.1)
        run.set_status(state="finished")
        process.kill()

    ending = threading.Thread(target=end_it)
    ending.start()
    yield run
    given_up.set()
    ending.join()
    process.wait()
    shutil.rmtree(run.path)


def test_it_is_queued_once_more_and_the_queue_is_free_meanwhile(browse, run):
    seen = browse("queue_again.cjs", "", run.id)
    assert seen == {"queue": 0, "ended": 2, "state": "finished"}
