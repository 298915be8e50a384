"""Shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[1]


GROUPS = {
    "tests/e2e/test_nodes_there.py": None,
    "tests/e2e/test_graphs.py": None,
    "tests/e2e/": "comfyui",
    "tests/nodes/test_workflow.py": "workflow",
    "tests/nodes/test_runs.py": "workflow",
    "tests/trainers/commands/test_train.py": None,
    "tests/trainers/runs/test_launcher.py": None,
    "tests/trainers/runs/test_queue.py": None,
}
"""Tests that one worker runs, because they share what takes seconds to make: by default those of a file.

Keys are how ids begin; the first match counts. Some files share a server or a run. None: tests that take long and share
nothing; each goes to the next worker that is free. The groups of most tests are run first.
"""

SKIPPED = pytest.StashKey[Counter]()


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "pipes: makes a named pipe (skipped where the system has none)")


def pytest_collection_finish(session) -> None:
    """Thousands of tests and the modules they import stay to the end: no collection of garbage has to visit them."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item) -> None:
    if item.get_closest_marker("pipes") and not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As `--dist loadgroup`, whose marks get lost with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for start, group in GROUPS.items():
                if nodeid.startswith(start):
                    return group or nodeid
            return nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter, config) -> None:
    reports = terminalreporter.stats
    config.stash[SKIPPED] = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in reports.get("skipped", [])
    )
    for report in reports.get("passed", []):
        config.stash[SKIPPED].update(value for name, value in report.user_properties if name == "skipped")


def pytest_unconfigure(config) -> None:
    """Print last what was skipped, and why."""
    if SKIPPED in config.stash:
        lines = [f"  {count} x {reason}" for reason, count in config.stash[SKIPPED].items()]
        print("\n".join(["\nSkipped, and why:", *lines] if lines else ["\nNothing was skipped."]))


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory):
    """Runs lock their device in the temporary folder: a run of the user's must not block the tests."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    tempfile.tempdir = None
    yield
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Children of the test start with the default handling of signals, whatever this process inherited.

    What a shell starts in the background ignores SIGINT, what nohup starts ignores SIGHUP, and so do all children of
    it. A signal that is handled, here by doing nothing, has its default in a new program.
    """
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]
    ignored = [number for number in signals if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def small_phantom(small_models, tmp_path_factory) -> dict:
    """The policy section of `small_models` for a Phantom whose text encoder and VAE lie apart from it."""
    import torch

    from trainers.tinyworld.models import build_phantom

    folder, vace = tmp_path_factory.mktemp("phantom"), Path(small_models["policy"]["source"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        build_phantom().save_pretrained(folder / "transformer")
    return {"source": str(folder), "text_encoder": str(vace / "text_encoder"), "vae": str(vace / "vae")}


@pytest.fixture(scope="session")
def small_models(tmp_path_factory) -> dict:
    """Settings that name a policy and a reward of the real classes with random weights, and rows to train on."""
    import torch

    from trainers.tinyworld.models import build_text_encoder, build_tokenizer, build_vace, build_vae

    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(["two people wave"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {"transformer": build_vace(), "vae": build_vae(), "text_encoder": build_text_encoder(len(tokenizer))}
    for name, part in (parts | {"tokenizer": tokenizer}).items():
        part.save_pretrained(folder / "policy" / name)
    rng = np.random.default_rng(0)
    rows = ["ref_paths,prompt"]
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"face{index}.png")
        rows.append(f"face{index}.png;face{(index + 1) % 8}.png,two people wave")
    (folder / "prompts.csv").write_text("\n".join(rows), encoding="utf-8")
    case = REPOSITORY / "tests" / "golden" / "identity_reward"
    return {
        "policy": {"source": str(folder / "policy")},
        "reward": {"source": str(case / "identity_reward"), "base_model": str(case / "base_model")},
        "prompts": str(folder / "prompts.csv"),
        "held_out": 2,
    }
