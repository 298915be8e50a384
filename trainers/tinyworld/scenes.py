"""Scenes of TinyWorld: people with their places and actions, and a background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .people import describe, sample_people

MAX_PEOPLE = 3
ACTIONS = ["stands still", "waves", "jumps", "turns around", "walks across"]
STAND, WAVE, JUMP, TURN, CROSS = range(len(ACTIONS))
BACKGROUNDS = 6


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of up to 3 people; rows beyond `count` are padding.

    people int64 [B, 3, 9]; count int64 [B]; slot int64 [B, 3]: place at the start, 0 is leftmost; action int64 [B, 3]
    (ACTIONS); jitter float32 [B, 3, 3] in [-1, 1]: x, y and phase; depth float32 [B, 3]: larger is nearer; background
    int64 [B].
    """

    people: Tensor
    count: Tensor
    slot: Tensor
    action: Tensor
    jitter: Tensor
    depth: Tensor
    background: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index) -> SceneBatch:
        """Scenes of a slice, a mask or an index tensor."""
        return SceneBatch(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> SceneBatch:
        return SceneBatch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def present(self) -> Tensor:
        """Bool [B, 3]: which rows hold a person."""
        return torch.arange(MAX_PEOPLE, device=self.count.device) < self.count[:, None]

    def to_dict(self) -> dict:
        """Plain lists, for JSON."""
        return {f.name: getattr(self, f.name).tolist() for f in fields(self)}

    @staticmethod
    def from_dict(values: dict) -> SceneBatch:
        kinds = {"jitter": torch.float32, "depth": torch.float32}
        return SceneBatch(
            *(torch.tensor(values[f.name], dtype=kinds.get(f.name, torch.int64)) for f in fields(SceneBatch))
        )

    @staticmethod
    def cat(batches: Sequence[SceneBatch]) -> SceneBatch:
        return SceneBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(SceneBatch)))


def sample_scenes(count: int, generator: torch.Generator, counts: Sequence[int] = (2, 3)) -> SceneBatch:
    """Random scenes on the generator's device, with a number of people from `counts`.

    In a quarter of them two neighbours exchange places.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    people = sample_people(count * MAX_PEOPLE, generator).view(count, MAX_PEOPLE, -1)
    chosen = torch.randint(len(counts), (count,), generator=generator, device=device)
    number = torch.tensor(list(counts), device=device)[chosen]
    rows = torch.arange(MAX_PEOPLE, device=device)
    order = uniform(count, MAX_PEOPLE) + (rows >= number[:, None]) * 10
    slot = order.argsort(1).argsort(1)
    action = torch.randint(CROSS, (count, MAX_PEOPLE), generator=generator, device=device)
    first = (uniform(count) * (number - 1)).long()
    crossing = (uniform(count) < 0.25)[:, None] & ((slot == first[:, None]) | (slot == first[:, None] + 1))
    action = torch.where(crossing, CROSS, action)
    return SceneBatch(
        people,
        number,
        slot,
        action,
        uniform(count, MAX_PEOPLE, 3) * 2 - 1,
        uniform(count, MAX_PEOPLE),
        torch.randint(BACKGROUNDS, (count,), generator=generator, device=device),
    )


def prompt(scene: SceneBatch) -> str:
    """The text of one scene (a batch of one), people in the order of their references."""
    count = int(scene.count[0])
    places = ["on the left", "on the right"] if count == 2 else ["on the left", "in the middle", "on the right"]
    parts = [
        f"{describe(scene.people[0, k])} {places[int(scene.slot[0, k])]} {ACTIONS[int(scene.action[0, k])]}"
        for k in range(count)
    ]
    return ", ".join(parts) + "."
