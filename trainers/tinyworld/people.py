"""People of TinyWorld: their attributes, and the rendering parameters that follow from these."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SKIN = [(255, 219, 190), (238, 187, 145), (205, 145, 98), (160, 104, 66), (113, 70, 45), (74, 47, 33)]
HAIR = [(32, 26, 26), (104, 60, 28), (224, 182, 82), (206, 74, 30), (200, 200, 208), (60, 90, 210), (220, 90, 170)]
EYES = [(40, 110, 210), (40, 150, 70), (96, 56, 24), (20, 20, 24)]
CLOTHES = [
    (206, 44, 50),
    (44, 92, 196),
    (50, 150, 76),
    (236, 190, 46),
    (122, 64, 168),
    (240, 128, 40),
    (244, 244, 244),
    (52, 54, 62),
]
HAIR_NAMES = ["black", "brown", "blond", "red", "grey", "blue", "pink"]
CLOTHES_NAMES = ["red", "blue", "green", "yellow", "purple", "orange", "white", "dark"]
STYLES = ["bald", "short", "long", "bun", "spiky", "curly"]

# name -> number of values; a person is one index per name, in this order.
ATTRIBUTES = {
    "skin": len(SKIN),
    "face": 3,
    "style": len(STYLES),
    "hair": len(HAIR),
    "eyes": len(EYES),
    "glasses": 3,
    "beard": 3,
    "clothes": len(CLOTHES),
    "pattern": 3,
}
# Slices of the appearance vector that belong to each attribute.
PARTS = {
    "skin": slice(0, 3),
    "face": slice(3, 6),
    "style": slice(6, 12),
    "hair": slice(12, 15),
    "eyes": slice(15, 18),
    "glasses": slice(18, 20),
    "beard": slice(20, 22),
    "clothes": slice(22, 25),
    "pattern": slice(25, 27),
}
APPEARANCE = 27
# Half width, half height and squareness of a face, in head radii.
FACES = [(1.0, 0.95, 0.0), (0.82, 1.1, 0.0), (0.92, 1.0, 1.0)]


@lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device) -> Tensor:
    """Float32 tensor of (nested) numbers. Cached, since copying it to a GPU would wait for all running kernels."""
    return torch.tensor(values, device=device, dtype=torch.float32)


def colours(table: list[tuple[int, int, int]], index: Tensor) -> Tensor:
    """Colours [..., 3] in [-1, 1] out of a table of bytes; index int64 [...]."""
    return constant(tuple(table), index.device)[index] / 127.5 - 1


def sample_people(count: int, generator: torch.Generator) -> Tensor:
    """Random people, int64 [count, 9], on the generator's device; attributes are independent and uniform."""
    device = generator.device
    columns = [torch.randint(n, (count,), generator=generator, device=device) for n in ATTRIBUTES.values()]
    return torch.stack(columns, -1)


def appearance(people: Tensor) -> Tensor:
    """Rendering parameters float32 [..., 27] of people int64 [..., 9]: colours in [-1, 1], shapes, parts worn.

    They are continuous: a mixture of two people is the mixture of their vectors.
    """
    skin, face, style, hair, eyes, glasses, beard, clothes, pattern = people.unbind(-1)
    return torch.cat(
        [
            colours(SKIN, skin),
            constant(tuple(FACES), face.device)[face],
            F.one_hot(style, len(STYLES)).float(),
            colours(HAIR, hair),
            colours(EYES, eyes),
            F.one_hot(glasses, 3)[..., 1:].float(),
            F.one_hot(beard, 3)[..., 1:].float(),
            colours(CLOTHES, clothes),
            F.one_hot(pattern, 3)[..., 1:].float(),
        ],
        -1,
    )


def describe(person: Tensor) -> str:
    """The text for one person [9]: hair and clothes only, the face is in the portrait."""
    style, hair, clothes = (int(person[list(ATTRIBUTES).index(n)]) for n in ("style", "hair", "clothes"))
    head = "no hair" if STYLES[style] == "bald" else f"{STYLES[style]} {HAIR_NAMES[hair]} hair"
    return f"a person with {head} and a {CLOTHES_NAMES[clothes]} shirt"
