"""The panel of runs and the strips on the nodes, in the real editor: classic canvas and Nodes 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_server import deleting_runs

NOT_STARTED = "Not started: press Run"
SECONDS = 2.0
"""From a row in metrics.jsonl to the chart."""


@pytest.fixture(scope="module")
def runs(comfyui) -> Path:
    """ComfyUI's private folder of runs."""
    return comfyui.base / "user" / "__identity_grpo" / "runs"


@pytest.fixture(scope="module")
def seen(comfyui, browse, runs) -> Iterator[dict]:
    """What a user sees of a run from the queue to its deletion."""
    with deleting_runs(comfyui):
        yield browse("panel.cjs", "", runs)


def test_nothing_fails_in_the_page(seen):
    assert seen["problems"] == []


def test_without_a_run_the_nodes_and_the_panel_say_how_to_start(seen):
    assert {kind: strip["text"] for kind, strip in seen["before"].items()} == dict.fromkeys(
        ("Train", "Run"), NOT_STARTED
    )
    assert "No training run yet" in seen["empty"] and "Choose a template" in seen["empty"]


def test_a_run_is_shown_on_both_nodes_from_its_start(seen):
    shown = {kind: strip["able"] for kind, strip in seen["started"].items()}
    assert shown["Train"] == shown["Run"] == ["Stop", "Save now", "More actions"]


def test_a_strip_has_one_height_and_the_width_of_its_node(seen):
    strips = [strip for when in ("started", "resumed") for strip in seen[when].values()]
    assert {strip["height"] for strip in strips} - {0} == {96} and all(strip["fills"] for strip in strips)


def test_a_metric_is_on_screen_within_two_seconds(seen):
    # The first of them may have waited for the charts themselves.
    assert min(seen["delays"]) <= 1000 * SECONDS


def test_a_stopped_run_may_be_resumed(seen):
    assert seen["stopped"]["able"] == ["Resume", "More actions"]


def test_a_title_is_text_and_kept(seen):
    assert seen["title"] == {"file": "<b>two people</b>\n", "bold": 0}


def test_the_graph_uses_its_lora(seen):
    assert seen["lora"] == f"{seen['id']}: latest"


def test_a_lora_is_kept_from_the_files(seen):
    assert seen["kept"]["list"] == [seen["kept"]["iteration"]]


def test_waiting_runs_change_places_by_menu_keys_and_mouse(seen):
    first = seen["orders"][0]
    assert seen["orders"] == [first, first[::-1]] * 3


def test_clips_and_reference_images_are_shown(seen):
    assert seen["clips"] >= 2


def test_after_a_reload_in_nodes_2_0_the_nodes_show_and_control_the_run(seen):
    assert all(strip["able"] == ["Resume", "More actions"] for strip in seen["reloaded"].values())
    assert all("Stop" in strip["able"] for strip in seen["resumed"].values())


def test_a_failed_run_is_announced_once_and_counted_until_it_is_seen(seen):
    assert seen["failed"]["able"] == ["Resume", "More actions"]
    assert seen["notice"] == {"toasts": 1, "badge": True, "read": True}


def test_a_deleted_run_is_brought_back_by_undo(seen):
    assert not seen["deleted"]["there"] and seen["deleted"]["strip"]["able"] == ["Restore the deleted run"]
    assert seen["restored"]["there"] and seen["restored"]["strip"]["able"] == ["Resume", "More actions"]


def test_a_workflow_cannot_send_the_panel_to_another_address(seen):
    assert not [url for url in seen["gone"]["asked"] if "elsewhere" in url or "gone-" in url]
