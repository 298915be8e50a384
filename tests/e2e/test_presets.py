"""Train's preset, mistakes and the list of templates in the real editor."""

from __future__ import annotations

import pytest

TINY = {"iterations": 24, "learning_rate": 0.001, "width": 80, "height": 48, "frames": 9, "evaluate_every": 10}
PAPER = {"iterations": 120, "learning_rate": 0.0001, "width": 416, "height": 240, "frames": 33, "evaluate_every": 10}


@pytest.fixture(scope="module")
def seen(browse) -> dict:
    return browse("presets.cjs", "")


def test_the_preset_of_the_linked_model_fills_in_its_values(seen):
    assert seen["filled"] == TINY


def test_a_changed_value_carries_a_dot_and_stays_when_another_preset_is_chosen(seen):
    assert seen["changed"] == marked(TINY, iterations=7)
    assert seen["paper"] == marked(PAPER, iterations=7)


def test_the_menu_of_the_node_resets_it(seen):
    assert seen["menu"] == ["Reset iterations to preset (120)"] and seen["reset"] == PAPER


def test_ten_mistakes_are_one_error_each_on_the_widget_that_is_wrong(seen):
    assert len(seen["mistakes"]) == 10
    wrong = [m for m in seen["mistakes"] if [error[:2] for error in m["errors"]] != [m["given"][:2]]]
    assert wrong == []


def test_the_types_of_links_have_colours_of_their_own(seen):
    assert len(set(seen["colours"])) == 4 and all(seen["colours"])


def test_templates_are_listed_in_the_order_of_their_numbers(seen):
    assert seen["templates"] == sorted(seen["templates"]) and len(seen["templates"]) >= 9


def marked(values: dict, **changed) -> dict:
    return {f"\u25cf {name}" if name in changed else name: changed.get(name, value) for name, value in values.items()}
