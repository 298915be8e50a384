from __future__ import annotations

import json

import numpy as np
import torch

from trainers.tinyworld.models import PORTRAIT
from trainers.tinyworld.people import appearance
from trainers.tinyworld.prompts import scenes_of, tiny_prompt_set
from trainers.tinyworld.render import render_portraits, to_frames
from trainers.tinyworld.scenes import prompt


def test_items_hold_portraits_in_the_order_of_the_prompt():
    for item in tiny_prompt_set("train", 6):
        scene = scenes_of([item])
        assert item.prompt == prompt(scene)
        assert len(item.references) == int(scene.count)
        for reference, person in zip(item.references, scene.people[0], strict=False):
            rendered = to_frames(render_portraits(appearance(person[None]), PORTRAIT).unsqueeze(2))[0, 0].numpy()
            assert reference.dtype == np.uint8
            # In a batch a value on the edge of rounding may differ.
            assert np.abs(reference.astype(int) - rendered).max() <= 1


def test_an_item_does_not_depend_on_the_number_of_items():
    few, many = tiny_prompt_set("held_out", 3), tiny_prompt_set("held_out", 9)
    assert [i.id for i in few] == ["tiny-held-out-0000", "tiny-held-out-0001", "tiny-held-out-0002"]
    for a, b in zip(few, many, strict=False):
        assert (a.id, a.prompt, a.extra) == (b.id, b.prompt, b.extra)
        assert a.content() == b.content()


def test_splits_and_seeds_share_no_item():
    sets = [tiny_prompt_set(split, 40, seed) for split in ("train", "held_out") for seed in (0, 1, 10)]
    contents = [json.dumps(item.extra["scene"]) for items in sets for item in items]
    assert len(set(contents)) == len(contents)


def test_scenes_come_back_as_one_batch():
    items = tiny_prompt_set("train", 4)
    scenes = scenes_of([items[2], items[0]])
    assert len(scenes) == 2
    assert torch.equal(scenes.people[1], scenes_of(items[:1]).people[0])
    assert json.loads(json.dumps(items[0].extra)) == items[0].extra
