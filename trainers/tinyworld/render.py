"""Drawing TinyWorld: soft-edged shapes from distance functions, for many scenes at once and at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .people import PARTS, appearance
from .scenes import CROSS, JUMP, MAX_PEOPLE, TURN, WAVE, SceneBatch

SKIES = [(214, 232, 244), (242, 228, 208), (218, 238, 214), (234, 218, 238), (226, 228, 232), (250, 240, 200)]
GROUNDS = [(150, 178, 150), (190, 160, 128), (140, 160, 180), (160, 140, 150), (170, 170, 160), (150, 150, 120)]


@dataclass(frozen=True)
class Motion:
    """Where people are: each float32 [B, 3, F]. x, y: head centre in units of the picture's height (x from the left);
    turn in [-1, 1] (looking left to right); hand: 0 down to 1 raised, with `swing` in [-1, 1]; visible: 0 or 1."""

    x: Tensor
    y: Tensor
    turn: Tensor
    hand: Tensor
    swing: Tensor
    visible: Tensor


def motion(scenes: SceneBatch, frames: int = 9, aspect: float = 80 / 48, action: Tensor | None = None) -> Motion:
    """Tracks of everybody over the clip; `action` [B, 3] replaces the scenes' own. `aspect`: width over height."""
    device = scenes.count.device
    action = scenes.action if action is None else action
    time = torch.linspace(0, 1, frames, device=device).view(1, 1, frames)
    dx, dy, phase = (j.unsqueeze(-1) for j in scenes.jitter.unbind(-1))
    number = scenes.count.view(-1, 1, 1)
    slot = scenes.slot.unsqueeze(-1)
    crossing = (action == CROSS).unsqueeze(-1)
    # The other of the two who cross: the slots they hold sum to a constant.
    total = (slot * crossing).sum(1, keepdim=True)
    other = torch.where(crossing & (crossing.sum(1, keepdim=True) == 2), total - slot, slot)

    def place(s: Tensor) -> Tensor:
        return aspect * (s + 0.5) / number

    ease = time * time * (3 - 2 * time)
    x = place(slot) + (place(other) - place(slot)) * ease + dx * 0.02
    wave = 2 * math.pi * (time + 0.06 * phase)
    jump = (action == JUMP).unsqueeze(-1) * torch.sin(wave).abs()
    y = 0.44 + dy * 0.015 - 0.13 * jump
    walk = crossing * torch.sign(place(other) - place(slot)) * torch.sin(math.pi * time)
    turn = (action == TURN).unsqueeze(-1) * torch.sin(wave) + 0.7 * walk
    hand = (action == WAVE).unsqueeze(-1).float().expand_as(x)
    return Motion(x.expand_as(hand), y.expand_as(hand), turn.expand_as(hand), hand, torch.sin(2 * wave).expand_as(hand),
                  scenes.present().unsqueeze(-1).float().expand_as(hand))


def render(
    scenes: SceneBatch, altered: Tensor | None = None, frames: int = 9, height: int = 48, width: int = 80,
    moves: Motion | None = None,
) -> Tensor:
    """Clips float32 [B, 3, F, H, W] in [-1, 1]. `altered` [B, 3, F, P] replaces the people's own appearance, frame by frame."""
    moves = moves or motion(scenes, frames, width / height)
    if altered is None:
        altered = appearance(scenes.people).unsqueeze(2).expand(-1, -1, frames, -1)
    device = altered.device
    rows = (torch.arange(height, device=device) + 0.5).view(1, 1, height, 1) / height
    columns = (torch.arange(width, device=device) + 0.5).view(1, 1, 1, width) / height
    canvas = _backdrop(scenes.background, rows, columns, frames)
    order = scenes.depth.argsort(1)
    pick = torch.arange(len(scenes), device=device)
    for layer in range(MAX_PEOPLE):
        who = order[:, layer]
        parts = [getattr(moves, n)[pick, who] for n in ("x", "y", "turn", "hand", "swing", "visible")]
        canvas = draw_person(canvas, altered[pick, who], rows, columns, 0.165, height, *parts)
    return canvas.permute(0, 4, 1, 2, 3)


def render_portraits(looks: Tensor, size: int = 96) -> Tensor:
    """Frontal portraits float32 [N, 3, S, S] in [-1, 1] on white, of appearances [N, P]."""
    device = looks.device
    rows = (torch.arange(size, device=device) + 0.5).view(1, 1, size, 1) / size
    columns = (torch.arange(size, device=device) + 0.5).view(1, 1, 1, size) / size
    canvas = torch.ones(len(looks), 1, size, size, 3, device=device)
    zero = torch.zeros(len(looks), 1, device=device)
    drawn = draw_person(canvas, looks.unsqueeze(1), rows, columns, 0.25, size, zero + 0.5, zero + 0.47, zero, zero, zero, zero + 1)
    return drawn[:, 0].permute(0, 3, 1, 2)


def to_frames(clips: Tensor) -> Tensor:
    """float [B, 3, F, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3]."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def _backdrop(background: Tensor, rows: Tensor, columns: Tensor, frames: int) -> Tensor:
    def colour(table: list[tuple[int, int, int]]) -> Tensor:
        return (torch.tensor(table, device=rows.device, dtype=torch.float32)[background] / 127.5 - 1).view(-1, 1, 1, 1, 3)

    ground = torch.sigmoid((rows - 0.8) * 60).unsqueeze(-1)
    shade = 1 - 0.06 * rows.unsqueeze(-1)
    picture = (colour(SKIES) * (1 - ground) + colour(GROUNDS) * ground) * shade
    return picture.expand(-1, frames, -1, columns.shape[-1], -1)


def draw_person(
    canvas: Tensor, look: Tensor, rows: Tensor, columns: Tensor, radius: float, pixels: int,
    x: Tensor, y: Tensor, turn: Tensor, hand: Tensor, swing: Tensor, visible: Tensor,
) -> Tensor:
    """Composite one person per clip onto canvas [B, F, H, W, 3]; look [B, F, P], the rest [B, F]; `radius` of a head."""
    def at(value: Tensor) -> Tensor:
        return value[..., None, None]

    u, v = (columns - at(x)) / radius, (rows - at(y)) / radius
    turn, hand, swing = at(turn), at(hand), at(swing)
    soft = pixels * radius  # pixels in a head radius
    part = {name: look[..., where] for name, where in PARTS.items()}
    style = [at(w) for w in part["style"].unbind(-1)]
    bald, _, long, bun, spiky, curly = style
    wide, tall, square = (at(f) for f in part["face"].unbind(-1))
    colour = {n: part[n][:, :, None, None] for n in ("skin", "hair", "eyes", "clothes")}
    hairy = 1 - bald

    def paint(distance: Tensor, tint: Tensor | float, presence: Tensor | float = 1.0) -> None:
        nonlocal canvas
        alpha = (torch.sigmoid(-distance * soft * 2.5) * presence * at(visible)).unsqueeze(-1)
        canvas = canvas + (tint - canvas) * alpha

    def ellipse(cx, cy, rx, ry) -> Tensor:
        return (torch.sqrt(((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 + 1e-6) - 1) * torch.minimum(torch.as_tensor(rx), torch.as_tensor(ry))

    def box(cx, cy, rx, ry, round_: float = 0.1) -> Tensor:
        qx, qy = (u - cx).abs() - rx + round_, (v - cy).abs() - ry + round_
        return torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-6) + torch.maximum(qx, qy).clamp(max=0) - round_

    skin, hair, clothes = colour["skin"], colour["hair"], colour["clothes"]
    dark = skin * 0.72 - 0.2
    # Hair behind the head.
    paint(box(0.0, 0.55, 1.18 + 0 * wide, 1.45, 0.6), hair, long)
    paint(ellipse(0.0, -0.2, 1.5, 1.42), hair, curly)
    paint(ellipse(-0.2 * turn, -1.35, 0.52, 0.5), hair, bun)
    # Body.
    body = torch.minimum(box(0.0, 2.9, 1.42, 1.55, 0.75), box(0.0, 4.4, 1.42, 1.6, 0.1))
    stripes, dots = (at(p) for p in part["pattern"].unbind(-1))
    paint(body, clothes)
    pale = clothes * 0.35 + 0.55 * torch.where(clothes.mean(-1, keepdim=True) > 0.3, -1.0, 1.0)
    paint(torch.maximum(body + 0.06, (torch.remainder(v - 1.6, 0.95) - 0.48).abs() - 0.2), pale, stripes)
    spot = torch.sqrt((torch.remainder(u + 0.45, 0.9) - 0.45) ** 2 + (torch.remainder(v - 1.7, 0.9) - 0.45) ** 2 + 1e-6) - 0.24
    paint(torch.maximum(body + 0.1, spot), pale, dots)
    # Arm that waves.
    ax, ay = 1.5 + 0.28 * swing, 0.1 + 0 * swing
    along = ((v - 2.1) / (ay - 2.1)).clamp(0, 1)
    paint((u - (1.2 + (ax - 1.2) * along)).abs() * 0.95 - 0.3 + torch.relu(v - 2.6) + torch.relu(0.1 - v), clothes, hand)
    paint(ellipse(ax, ay, 0.36, 0.38), skin, hand)
    # Neck and head.
    paint(box(0.0, 1.15, 0.38, 0.5, 0.1), dark)
    head = ellipse(0.0, 0.0, wide, tall)
    jaw = box(0.0, 0.05, wide * 0.93, tall * 0.95, 0.35)
    face = head * (1 - square) + jaw * square
    paint(face, skin)
    # Beard below the mouth.
    look_x = 0.42 * turn
    moustache, beard = (at(b) for b in part["beard"].unbind(-1))
    chin = torch.maximum(face + 0.02, 0.32 - v + 0.25 * (u - look_x) ** 2 * 0)
    paint(chin, hair * 0.8 - 0.08, beard)
    # Hair in front: a cap above the forehead, by style.
    fringe = v + 0.42 - 0.12 * (u - look_x) ** 2
    cap = torch.maximum(ellipse(0.0, -0.08, wide * 1.1, tall * 1.08), fringe)
    paint(cap, hair, hairy)
    side = torch.maximum(ellipse(0.0, 0.0, wide * 1.12, tall * 1.05), 0.74 - (u - 0.3 * look_x).abs())
    paint(torch.maximum(side, v - 0.55), hair, torch.maximum(long, curly))
    teeth = v + 1.2 + 0.42 * (torch.remainder(u * 1.5 + 0.5, 1.0) - 0.5).abs() * 2 - 0.35
    paint(torch.maximum(teeth.abs() - 0.32, u.abs() - 0.92), hair, spiky)
    # Eyes, glasses, nose, mouth.
    near = 1 - 0.15 * turn.abs()
    for sign in (-1.0, 1.0):
        cx = look_x + sign * 0.38 * near
        paint(ellipse(cx, 0.02, 0.24, 0.19), 0.95)
        paint(ellipse(cx + 0.06 * turn, 0.03, 0.14, 0.16), colour["eyes"])
        ring, frame = (at(g) for g in part["glasses"].unbind(-1))
        paint(ellipse(cx, 0.04, 0.34, 0.33).abs() - 0.075, -0.85, ring)
        paint(box(cx, 0.04, 0.33, 0.26, 0.03).abs() - 0.075, -0.85, frame)
    paint(box(look_x, 0.28, 0.07, 0.12, 0.05), dark)
    paint(ellipse(look_x, 0.47, 0.34, 0.13), hair * 0.8 - 0.08, moustache)
    paint(ellipse(look_x, 0.66, 0.26, 0.09), torch.tensor([0.55, -0.45, -0.4], device=u.device))
    return canvas
