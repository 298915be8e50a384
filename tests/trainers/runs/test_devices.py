"""One run at a time on a device."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from trainers.errors import UserError
from trainers.runs.devices import hold_device, locks_folder

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from trainers.runs.devices import hold_device
with hold_device("cuda-x", "tiny-first"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def holder(repository):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(repository)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_run_is_refused_by_the_first_one_s_name(holder):
    with pytest.raises(UserError, match="cuda-x is in use by run tiny-first"), hold_device("cuda-x", "tiny-second"):
        pass


def test_another_device_is_free(holder):
    with hold_device("cuda-y", "tiny-second"):
        pass


def test_a_killed_run_gives_its_device_back(holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold_device("cuda-x", "tiny-second"):
        pass


def test_a_device_is_free_after_an_error():
    with pytest.raises(ZeroDivisionError), hold_device("cuda-x", "tiny-first"):
        raise ZeroDivisionError
    with hold_device("cuda-x", "tiny-second"):
        pass


def test_locks_are_private(tmp_path):
    assert locks_folder().parent == tmp_path and locks_folder().stat().st_mode & 0o777 == 0o700
