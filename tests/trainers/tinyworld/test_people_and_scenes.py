from __future__ import annotations

import json

import pytest
import torch

from trainers.tinyworld.people import APPEARANCE, ATTRIBUTES, PARTS, appearance, describe, sample_people
from trainers.tinyworld.scenes import ACTIONS, CROSS, SceneBatch, prompt, sample_scenes


def scenes(count: int, seed: int = 0, counts: tuple[int, ...] = (2, 3)) -> SceneBatch:
    return sample_scenes(count, torch.Generator().manual_seed(seed), counts)


def test_people_take_every_value_of_every_attribute():
    people = sample_people(2000, torch.Generator().manual_seed(0))
    for column, values in zip(people.unbind(1), ATTRIBUTES.values(), strict=True):
        assert sorted(column.unique().tolist()) == list(range(values))


def test_the_appearance_says_every_attribute():
    people = torch.zeros(1, len(ATTRIBUTES), dtype=torch.long)
    for index, (name, values) in enumerate(ATTRIBUTES.items()):
        variants = people.repeat(values, 1)
        variants[:, index] = torch.arange(values)
        looks = appearance(variants)
        assert looks.shape == (values, APPEARANCE)
        assert len(looks[:, PARTS[name]].unique(dim=0)) == values
        others = torch.ones(APPEARANCE, dtype=torch.bool)
        others[PARTS[name]] = False
        assert (looks[:, others] == looks[:1, others]).all()


def test_colours_of_clothes_and_hair_stay_apart():
    people = torch.zeros(8, len(ATTRIBUTES), dtype=torch.long)
    people[:, 7] = torch.arange(8)
    people[:7, 3] = torch.arange(7)
    looks = appearance(people)
    assert torch.nn.functional.pdist(looks[:, PARTS["clothes"]]).min() > 0.4
    assert torch.nn.functional.pdist(looks[:7, PARTS["hair"]]).min() > 0.4


def test_the_text_describes_hair_and_clothes_but_not_the_face():
    person = torch.tensor([0, 0, 2, 3, 0, 0, 0, 1, 0])
    assert describe(person) == "a person with long red hair and a blue shirt"
    other_face = torch.tensor([5, 2, 2, 3, 3, 2, 2, 1, 2])
    assert describe(other_face) == describe(person)
    assert describe(torch.tensor([0, 0, 0, 3, 0, 0, 0, 1, 0])) == "a person with no hair and a blue shirt"


def test_the_same_seed_gives_the_same_scenes():
    assert scenes(20).to_dict() == scenes(20).to_dict()
    assert scenes(20).to_dict() != scenes(20, seed=1).to_dict()


def test_everybody_of_a_scene_has_a_place_of_his_own():
    sampled = scenes(300)
    assert set(sampled.count.tolist()) == {2, 3}
    for count, slots in zip(sampled.count.tolist(), sampled.slot.tolist(), strict=True):
        assert sorted(slots[:count]) == list(range(count))
    # A reference is not tied to a place.
    assert (sampled.slot[:, 0] == 0).float().mean().item() == pytest.approx(5 / 12, abs=0.1)


def test_who_crosses_exchanges_places_with_one_neighbour():
    sampled = scenes(400)
    crossing = (sampled.action == CROSS) & sampled.present()
    assert set(crossing.sum(1).tolist()) == {0, 2}
    assert 0.15 < (crossing.sum(1) == 2).float().mean() < 0.35
    places = sampled.slot[crossing].view(-1, 2)
    assert (places.diff(dim=1).abs() == 1).all()
    assert set(sampled.action[sampled.present()].tolist()) == set(range(len(ACTIONS)))


def test_the_prompt_follows_the_order_of_the_references():
    sampled = scenes(50)
    places = {2: ["on the left", "on the right"], 3: ["on the left", "in the middle", "on the right"]}
    for index in range(50):
        scene = sampled[index : index + 1]
        parts = prompt(scene).removesuffix(".").split(", ")
        count = int(scene.count)
        assert len(parts) == count
        for k, text in enumerate(parts):
            assert text.startswith(describe(scene.people[0, k]))
            assert places[count][int(scene.slot[0, k])] in text
            assert text.endswith(ACTIONS[int(scene.action[0, k])])


def test_prompts_keep_to_a_small_vocabulary():
    sampled = scenes(1500)
    words = {w for i in range(1500) for w in prompt(sampled[i : i + 1]).replace(",", " ").replace(".", " ").split()}
    assert len(words) < 60


def test_scenes_survive_json():
    sampled = scenes(5)
    again = SceneBatch.from_dict(json.loads(json.dumps(sampled.to_dict())))
    for name in ("people", "count", "slot", "action", "jitter", "depth", "background"):
        assert torch.equal(getattr(again, name), getattr(sampled, name))
        assert getattr(again, name).dtype == getattr(sampled, name).dtype


def test_scenes_slice_and_join():
    sampled = scenes(6)
    joined = SceneBatch.cat([sampled[:2], sampled[torch.tensor([2, 3])], sampled[torch.arange(6) >= 4]])
    assert len(joined) == 6
    assert joined.to_dict() == sampled.to_dict()
