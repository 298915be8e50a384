"""Texts that enter through a widget or a link."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(scope="module")
def texts(pack):
    return import_module("identity_grpo.nodes.texts")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two people \ud83d", "two people "),
        ("\ude00 two people", " two people"),
        ("a\ud83db", "ab"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\U0001f600 é 两个人", "\U0001f600 é 两个人"),
        ("", ""),
    ],
)
def test_half_an_emoji_is_dropped_and_everything_else_is_kept(texts, text, expected):
    assert texts.clean(text) == expected


@pytest.mark.parametrize("prompt", ["", "  \n\t", "\ud83d"])
def test_an_empty_prompt_is_refused(texts, prompt):
    assert texts.prompt_problem(prompt) == "the prompt is empty; describe the video"
    with pytest.raises(texts.UserError, match="the prompt is empty; describe the video"):
        texts.clean_prompt(prompt)


def test_a_prompt_that_a_link_will_bring_is_not_judged(texts):
    assert texts.prompt_problem(None) is None
