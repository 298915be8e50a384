"""Scenes whose people are distorted in one of several ways, at a given severity."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..models import FRAMES
from ..people import PARTS, appearance, sample_people
from ..render import HEAD_LINE, Motion, motion
from ..scenes import MAX_PEOPLE, SceneBatch

DISTORTIONS = ("swap", "blend", "drift", "lost attribute", "missing", "copy-paste")


def looks(scenes: SceneBatch, frames: int = FRAMES) -> Tensor:
    """The right appearance of all people in every frame: float32 [B, 3, F, P]."""
    return appearance(scenes.people).unsqueeze(2).expand(-1, -1, frames, -1)


def distort(
    scenes: SceneBatch, kind: Tensor, severity: Tensor, generator: torch.Generator, frames: int = FRAMES
) -> tuple[Tensor, Motion]:
    """Appearance [B, 3, F, P] and motion of scenes that are distorted in one way each.

    kind: int64 [B], index into DISTORTIONS, or -1 for none; severity: float32 [B] in (0, 1]. All on the scenes' device.

    swap: two people have each other's appearance from some frame on (severity 1: from the first).
    blend: each person is mixed with the next by up to one half.
    drift: one person becomes a stranger by the end.
    lost attribute: some (severity 1: most) attributes of one person become a stranger's.
    missing: one person is invisible from some frame on.
    copy-paste: the portrait's pose, without motion, instead of the action.
    """
    device = scenes.count.device
    b = len(scenes)
    rows = torch.arange(b, device=device)
    clean = looks(scenes, frames)
    time = torch.linspace(0, 1, frames, device=device).view(1, 1, frames, 1)
    strength = severity.view(b, 1, 1, 1)
    present = scenes.present()

    def someone() -> Tensor:
        return (torch.rand(b, generator=generator, device=device) * scenes.count).long()

    def only(who: Tensor) -> Tensor:
        return (torch.arange(MAX_PEOPLE, device=device) == who[:, None]).view(b, MAX_PEOPLE, 1, 1)

    def chosen(name: str) -> Tensor:
        return (kind == DISTORTIONS.index(name)).view(b, 1, 1, 1)

    who = someone()
    partner = (who + 1 + (torch.rand(b, generator=generator, device=device) * (scenes.count - 1)).long()) % scenes.count
    stranger = appearance(sample_people(b, generator)).view(b, 1, 1, -1)
    after = (time >= 1 - strength).float()

    permuted = clean.clone()
    permuted[rows, who], permuted[rows, partner] = clean[rows, partner], clean[rows, who]
    altered = torch.where(chosen("swap"), clean + (permuted - clean) * after, clean)

    following = (torch.arange(MAX_PEOPLE, device=device) + 1) % scenes.count[:, None]
    neighbours = clean[rows[:, None], following]
    altered = torch.where(chosen("blend"), clean + (neighbours - clean) * 0.5 * strength, altered)
    drifting = clean + (stranger - clean) * (time * 1.6).clamp(max=1) * strength
    altered = torch.where(chosen("drift") & only(who), drifting, altered)

    lost = torch.zeros(b, clean.shape[-1], device=device)
    chance = 0.25 + 0.6 * severity
    for part in PARTS.values():
        lost[:, part] = (torch.rand(b, generator=generator, device=device) < chance).float()[:, None]
    without = clean + (stranger - clean) * lost.view(b, 1, 1, -1)
    altered = torch.where(chosen("lost attribute") & only(who), without, altered)

    moves = motion(scenes, frames)
    gone = (chosen("missing") & only(who)).squeeze(-1) & (after.squeeze(-1) > 0)
    stiff = (chosen("copy-paste").squeeze(-1) & present.unsqueeze(-1)).expand_as(moves.x)
    still = torch.zeros_like(moves.x)
    return altered, replace(
        moves,
        x=torch.where(stiff, moves.x[..., :1], moves.x),
        y=torch.where(stiff, still + HEAD_LINE, moves.y),
        turn=torch.where(stiff, still, moves.turn),
        hand=torch.where(stiff, still, moves.hand),
        visible=torch.where(gone, still, moves.visible),
    )


def random_kinds(count: int, shares: dict[str, float], generator: torch.Generator) -> Tensor:
    """Kinds int64 [count], sampled with the given shares; the remaining share is -1, no distortion.

    Raises ValueError for a name that is not in DISTORTIONS and for a sum of shares over 1.
    """
    if unknown := set(shares) - set(DISTORTIONS):
        raise ValueError(f"unknown distortions {sorted(unknown)}; there are {', '.join(DISTORTIONS)}")
    if sum(shares.values()) > 1 + 1e-6:
        raise ValueError(f"shares {shares} add up to more than 1")
    bounds = torch.tensor([shares.get(k, 0.0) for k in DISTORTIONS], device=generator.device).cumsum(0)
    uniform = torch.rand(count, generator=generator, device=generator.device)
    kind = torch.bucketize(uniform, bounds, right=True)
    return torch.where(kind < len(DISTORTIONS), kind, -1)
