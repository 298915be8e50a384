"""Values that come in through a widget or a link."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(scope="module")
def inputs(pack):
    return import_module("identity_grpo.nodes.inputs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two people \ud83d", "two people "),
        ("\ude00 two people", " two people"),
        ("a\ud83db", "ab"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\U0001f600 é \u4e24\u4e2a\u4eba", "\U0001f600 é \u4e24\u4e2a\u4eba"),
        ("", ""),
    ],
)
def test_half_an_emoji_is_dropped_and_everything_else_is_kept(inputs, text, expected):
    assert inputs.clean(text) == expected


@pytest.mark.parametrize("prompt", ["", "  \n\t", "\ud83d"])
def test_an_empty_prompt_is_refused(inputs, prompt):
    assert inputs.prompt_problem(prompt) == "the prompt is empty; describe the video"
    with pytest.raises(inputs.UserError, match="the prompt is empty; describe the video"):
        inputs.clean_prompt(prompt)


def test_a_prompt_that_a_link_will_bring_is_not_judged(inputs):
    assert inputs.prompt_problem(None) is None


LINKS = {"WAN_POLICY": "LazyPolicy", "IDENTITY_REWARD": "LazyReward", "PROMPT_SET": "PromptSet"}


def test_a_link_that_brings_nothing_is_named_by_every_node_that_needs_it(inputs, pack):
    """A switch that is off gives None."""
    modules = [import_module(f"identity_grpo.{name}") for name in ("nodes.types", "trainers.prompts")]
    kinds = {link: getattr(modules[name == "PromptSet"], name) for link, name in LINKS.items()}
    checked = []
    for node_id, node in pack.nodes.items():
        needed = [given for given in node.GET_SCHEMA().inputs if not given.optional]
        links = {given.id: kinds.get(given.get_io_type()) for given in needed}
        for absent in (name for name, kind in links.items() if kind):
            given = {name: kind and object.__new__(kind) for name, kind in links.items()}
            with pytest.raises(inputs.UserError, match=f"`{absent}` got nothing from the node that it is connected to"):
                node.execute(**given | {absent: None})
            checked.append((node_id, absent))
    assert len(checked) == 12


def test_a_choice_from_a_link_is_one_of_those_offered(inputs):
    inputs.require_choice("dtype", "float32", ["auto", "float32"])
    with pytest.raises(inputs.UserError, match="dtype `int8` is not offered here; choose auto or float32"):
        inputs.require_choice("dtype", "int8", ["auto", "float32"])
