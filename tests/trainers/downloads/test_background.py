"""Downloads in the background: their end, their stop, and one at a time."""

from __future__ import annotations

import threading
import time

import pytest

from trainers.downloads import background
from trainers.downloads.background import BackgroundFetch
from trainers.downloads.catalog import TEXT_ENCODER, VAE
from trainers.errors import UserError


@pytest.fixture
def fetching(monkeypatch):
    """`fetch` that reports a block of 5 bytes after each `next.release()`, three of them a file."""
    blocks = threading.Semaphore(0)

    def fetch(item, models, report):
        for done in (5, 10, 15):
            assert blocks.acquire(timeout=5)
            report(item.name, done, 15)
        (models / item.name).write_bytes(b"x" * 15)

    monkeypatch.setattr(background, "fetch", fetch)
    return blocks


def wait_for(download: BackgroundFetch, **wanted) -> dict:
    until = time.monotonic() + 5
    while not wanted.items() <= (download.status() or {}).items():
        assert time.monotonic() < until, download.status()
        time.sleep(0.005)
    return download.status()


def test_the_files_are_downloaded_one_after_the_other(fetching, tmp_path):
    download = BackgroundFetch()
    assert download.status() is None
    download.start([VAE, TEXT_ENCODER], tmp_path)
    fetching.release(4)
    assert wait_for(download, file=TEXT_ENCODER.name, done=5)["total"] == 15
    fetching.release(2)
    wait_for(download, state="finished")
    assert {p.name for p in tmp_path.iterdir()} == {VAE.name, TEXT_ENCODER.name}


def test_a_stop_ends_it_at_the_next_block_and_a_start_goes_on(fetching, tmp_path):
    download = BackgroundFetch()
    download.start([VAE], tmp_path)
    download.stop()
    fetching.release(1)
    wait_for(download, state="stopped")
    assert not list(tmp_path.iterdir())
    download.start([VAE], tmp_path)
    fetching.release(3)
    wait_for(download, state="finished")


def test_a_second_start_is_refused_and_names_what_is_downloaded(fetching, tmp_path):
    download = BackgroundFetch()
    download.start([VAE], tmp_path)
    with pytest.raises(UserError, match=r"wan_2\.1_vae\.safetensors is being downloaded"):
        download.start([TEXT_ENCODER], tmp_path)
    download.stop()
    fetching.release(1)


def test_a_failure_is_kept_with_its_reason(monkeypatch, tmp_path):
    def fetch(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(background, "fetch", fetch)
    download = BackgroundFetch()
    download.start([VAE], tmp_path)
    assert wait_for(download, state="failed")["error"] == "the disk is full"
