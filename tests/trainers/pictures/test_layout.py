"""Texts on pictures: lines that fit, in any script."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.pictures import layout


@pytest.mark.parametrize(
    "text",
    [
        "two people wave at the sea " * 9,
        "x" * 300,
        "\u4e00\u4f4d\u5973\u5b50\u5728\u96e8\u4e2d\u5fae\u7b11" * 20,
        "a " + "y" * 200 + " b",
    ],
)
def test_no_line_is_wider_than_asked_and_no_letter_is_lost(text):
    lines = layout.wrapped(text, 200)
    assert max(layout.font(15, text).getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_an_empty_text_has_no_line():
    assert layout.wrapped("  ", 200) == []


def test_letters_that_the_default_font_lacks_come_from_one_that_has_them(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    known = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    monkeypatch.setattr(layout, "WIDE_FONTS", ("no-such-font.ttf", known))
    assert (
        layout.font(15, "\u0434\u0432\u0435 \u043f\u043e\u0434\u0440\u0443\u0433\u0438").getname()[0] == "DejaVu Sans"
    )
    assert layout.font(15, "two friends").getname() == layout.font(15).getname()
    assert (
        layout.font(15, "\u0434\u0432\u0435 \u043f\u043e\u0434\u0440\u0443\u0433\u0438 \u96e8").getname()[0]
        == "DejaVu Sans"
    ), "a letter that no font has must not change the font of the others"


def test_without_such_a_font_the_default_is_used(monkeypatch):
    monkeypatch.setattr(layout, "WIDE_FONTS", ("no-such-font.ttf",))
    assert layout.font(15, "\u96e8").getname() == layout.font(15).getname()
