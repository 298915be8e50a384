"""Passes that two processes make together: sharded blocks, a video's tokens split, unequal work."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("kind", ["vace", "phantom"])
@pytest.mark.parametrize("check", ["sharded_passes", "split_passes"])
def test_two_processes_compute_what_one_does(forge, check, kind):
    assert forge.call(f"tests.trainers.policies.shared_passes:{check}", kind) == [0, 0], forge.errors.read_text()[
        -3000:
    ]


def test_a_process_without_work_makes_the_passes_of_the_others(forge):
    found = forge.call("tests.trainers.policies.shared_passes:unequal_passes", "vace")
    assert found == [0, 0], forge.errors.read_text()[-3000:]
