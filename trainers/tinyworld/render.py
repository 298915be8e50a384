"""TinyWorld's renderer: soft-edged shapes from distance functions, for batches of scenes and at any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .people import PARTS, appearance, colours, constant
from .scenes import CROSS, JUMP, MAX_PEOPLE, TURN, WAVE, SceneBatch

SKIES = [(214, 232, 244), (242, 228, 208), (218, 238, 214), (234, 218, 238), (226, 228, 232), (250, 240, 200)]
GROUNDS = [(150, 178, 150), (190, 160, 128), (140, 160, 180), (160, 140, 150), (170, 170, 160), (150, 150, 120)]
# In units of the picture's height: a head's radius, where its centre is at rest, how high people jump.
HEAD, HEAD_LINE, JUMP_HEIGHT = 0.165, 0.44, 0.13
# How much darker the backdrop is at the bottom.
SHADE = 0.06
# How far people reach to the side and up of the head's centre, in head radii; the width of a soft edge in pixels.
REACH_SIDE, REACH_UP, SOFT = 2.6, 2.4, 4.0

# Left, right, top and bottom in head radii from the head's centre.
Area = tuple[float, float, float, float]
# Signed distance in head radii at points (u to the right, v down, in head radii from the head's centre).
Shape = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Motion:
    """Tracks of people, each float32 [B, 3, F].

    x, y: head centre in units of the picture's height, x from the left; turn: direction of view from -1 (left) to 1
    (right); hand: 0 (down) to 1 (raised), with `swing` in [-1, 1]; visible: 0 or 1.
    """

    x: Tensor
    y: Tensor
    turn: Tensor
    hand: Tensor
    swing: Tensor
    visible: Tensor


def motion(scenes: SceneBatch, frames: int = 9, aspect: float = 80 / 48, action: Tensor | None = None) -> Motion:
    """Tracks of all people over the clip; `action` [B, 3] replaces the scenes' own. `aspect`: width over height."""
    device = scenes.count.device
    action = scenes.action if action is None else action
    time = torch.linspace(0, 1, frames, device=device).view(1, 1, frames)
    dx, dy, phase = (j.unsqueeze(-1) for j in scenes.jitter.unbind(-1))
    number = scenes.count.view(-1, 1, 1)
    slot = scenes.slot.unsqueeze(-1)
    crossing = ((action == CROSS) & scenes.present()).unsqueeze(-1)
    # The other of the two who cross: the slots they hold sum to a constant.
    total = (slot * crossing).sum(1, keepdim=True)
    other = torch.where(crossing & (crossing.sum(1, keepdim=True) == 2), total - slot, slot)

    def place(s: Tensor) -> Tensor:
        return aspect * (s + 0.5) / number

    ease = time * time * (3 - 2 * time)
    x = place(slot) + (place(other) - place(slot)) * ease + dx * 0.02
    wave = 2 * math.pi * (time + 0.06 * phase)
    jump = (action == JUMP).unsqueeze(-1) * torch.sin(wave).abs()
    y = HEAD_LINE + dy * 0.015 - JUMP_HEIGHT * jump
    walk = crossing * torch.sign(place(other) - place(slot)) * torch.sin(math.pi * time)
    turn = (action == TURN).unsqueeze(-1) * torch.sin(wave) + 0.7 * walk
    hand = (action == WAVE).unsqueeze(-1).float().expand_as(x)
    return Motion(
        x.expand_as(hand),
        y.expand_as(hand),
        turn.expand_as(hand),
        hand,
        torch.sin(2 * wave).expand_as(hand),
        scenes.present().unsqueeze(-1).float().expand_as(hand),
    )


def render(
    scenes: SceneBatch,
    altered: Tensor | None = None,
    frames: int = 9,
    height: int = 48,
    width: int = 80,
    moves: Motion | None = None,
) -> Tensor:
    """Clips float32 [B, 3, F, H, W] in [-1, 1].

    `altered` [B, 3, F, P] replaces the people's own appearance frame by frame, `moves` their tracks.
    """
    moves = moves or motion(scenes, frames, width / height)
    if altered is None:
        altered = appearance(scenes.people).unsqueeze(2).expand(-1, -1, frames, -1)
    order = scenes.depth.argsort(1)
    pick = torch.arange(len(scenes), device=altered.device).unsqueeze(1)
    x, y, turn, hand, swing, visible = (
        getattr(moves, name)[pick, order].flatten() for name in ("x", "y", "turn", "hand", "swing", "visible")
    )
    radius = HEAD * height
    column, row = x * height - 0.5, y * height - 0.5
    left, top = math.ceil(REACH_SIDE * radius), math.ceil(REACH_UP * radius)
    bottom = math.ceil((1 - HEAD_LINE + JUMP_HEIGHT) * height) + 1
    window = Window(top, bottom, left, left)
    right, down = column.round() - column, row.round() - row
    drawn = draw_people(altered[pick, order].flatten(0, 2), radius, window, right, down, turn, hand, swing)
    drawn = drawn * visible.view(-1, 1, 1, 1)
    shape = (len(scenes), MAX_PEOPLE, frames)
    places = _places(window, row.round().long(), column.round().long(), height, width).unflatten(0, shape)
    drawn = drawn.permute(0, 2, 3, 1).unflatten(0, shape)
    # One pixel more per picture takes what falls outside of it.
    canvas = F.pad(_backdrop(scenes.background, height, width), (0, 0, 0, 1))
    canvas = canvas.unsqueeze(1).expand(-1, frames, -1, -1).flatten(0, 2).contiguous()
    first = torch.arange(len(scenes) * frames, device=canvas.device) * (height * width + 1)
    first = first.view(len(scenes), frames, 1, 1)
    for layer in range(MAX_PEOPLE):
        at = (places[:, layer] + first).flatten()
        over = drawn[:, layer].reshape(-1, 4)
        canvas.index_copy_(0, at, torch.addcmul(over[:, :3], canvas.index_select(0, at), 1 - over[:, 3:]))
    pictures = canvas.view(len(scenes), frames, height * width + 1, 3)[:, :, :-1]
    return pictures.permute(0, 3, 1, 2).unflatten(3, (height, width)).contiguous()


def render_portraits(looks: Tensor, size: int = 96) -> Tensor:
    """Frontal portraits float32 [N, 3, S, S] in [-1, 1] on white, of appearances [N, P]."""
    column, row = 0.5 * size - 0.5, 0.47 * size - 0.5
    window = Window(round(row), size - 1 - round(row), round(column), size - 1 - round(column))
    none = looks.new_zeros(len(looks))
    right, down = none + (round(column) - column), none + (round(row) - row)
    drawn = draw_people(looks, 0.25 * size, window, right, down, none, none, none)
    return drawn[:, :3] + (1 - drawn[:, 3:])


def to_frames(clips: Tensor) -> Tensor:
    """float [B, 3, F, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3]."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def _backdrop(background: Tensor, height: int, width: int) -> Tensor:
    """Pixels [B, H W, 3]."""
    rows = ((torch.arange(height, device=background.device) + 0.5) / height).view(1, -1, 1)
    sky, earth = (colours(table, background).unsqueeze(1) for table in (SKIES, GROUNDS))
    ground = torch.sigmoid((rows - 0.8) * 60)
    picture = (sky * (1 - ground) + earth * ground) * (1 - SHADE * rows)
    return picture.unsqueeze(2).expand(-1, -1, width, -1).flatten(1, 2)


def _places(window: Window, row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Where a window's pixels lie in the flattened picture, int64 [N, h, w]; height * width where they lie outside."""
    rows = row.view(-1, 1, 1) + torch.arange(-window.top, window.bottom + 1, device=row.device).view(1, -1, 1)
    columns = column.view(-1, 1, 1) + torch.arange(-window.left, window.right + 1, device=row.device)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width)


@dataclass(frozen=True)
class Window:
    """Pixels up, down, left and right of the one that holds a head's centre."""

    top: int
    bottom: int
    left: int
    right: int

    def slices(self, radius: float, area: Area) -> tuple[slice, slice]:
        """Rows and columns that hold the area."""
        u0, u1, v0, v1 = (a * radius for a in area)
        return (
            slice(max(0, math.floor(v0) + self.top), max(0, math.ceil(v1) + self.top + 1)),
            slice(max(0, math.floor(u0) + self.left), max(0, math.ceil(u1) + self.left + 1)),
        )


def draw_people(
    looks: Tensor, radius: float, window: Window, right: Tensor, down: Tensor, turn: Tensor, hand: Tensor, swing: Tensor
) -> Tensor:
    """One person per window: colours times coverage and coverage, float32 [N, 4, h, w]; looks [N, P].

    `radius` of a head in pixels; right, down [N]: from the head's centre to the middle of the pixel that holds it, in
    pixels; turn, hand, swing [N] as in Motion. Every part is drawn only where it can be seen.
    """
    device = looks.device

    def at(value: Tensor) -> Tensor:
        return value[:, None, None]

    columns = (torch.arange(-window.left, window.right + 1, device=device) + at(right)) / radius
    rows = (torch.arange(-window.top, window.bottom + 1, device=device).unsqueeze(1) + at(down)) / radius
    picture = torch.zeros(len(looks), 4, rows.shape[1], columns.shape[2], device=device)
    turn, swing = at(turn), at(swing)
    part = {name: looks[:, where] for name, where in PARTS.items()}
    bald, _, long, bun, spiky, curly = (at(w) for w in part["style"].unbind(-1))
    wide, tall, square = (at(f) for f in part["face"].unbind(-1))
    ring, frame = (at(g) for g in part["glasses"].unbind(-1))
    moustache, beard = (at(b) for b in part["beard"].unbind(-1))
    stripes, dots = (at(p) for p in part["pattern"].unbind(-1))

    def opaque(colour: Tensor) -> Tensor:
        return F.pad(colour, (0, 1), value=1.0).view(-1, 4, 1, 1)

    def flat(*colour: float) -> Tensor:
        return constant((*colour, 1.0), device).view(1, 4, 1, 1)

    skin, hair, eyes, clothes = (part[n] for n in ("skin", "hair", "eyes", "clothes"))
    pale = clothes * 0.35 + 0.55 * torch.where(clothes.mean(-1, keepdim=True) > 0.3, -1.0, 1.0)
    skin, hair, eyes, clothes, pale, shadow, stubble = (
        opaque(c) for c in (skin, hair, eyes, clothes, pale, skin * 0.72 - 0.2, hair * 0.8 - 0.08)
    )
    white, black, lips = flat(0.95, 0.95, 0.95), flat(-0.85, -0.85, -0.85), flat(0.55, -0.45, -0.4)

    def paint(area: Area, shape: Shape, tint: Tensor, presence: Tensor | None = None) -> None:
        """Blend `tint` over where the distance is negative; `area` holds the shape."""
        soft = SOFT / radius
        where = window.slices(radius, (area[0] - soft, area[1] + soft, area[2] - soft, area[3] + soft))
        alpha = torch.sigmoid(shape(columns[..., where[1]], rows[:, where[0]]) * (-2.5 * radius))
        if presence is not None:
            alpha = alpha * presence
        picture[:, :, where[0], where[1]].lerp_(tint, alpha.unsqueeze(1))

    def oval(
        cx: Tensor | float,
        cy: float,
        rx: float,
        ry: float,
        tint: Tensor,
        presence: Tensor | None = None,
        span: tuple[float, float] | None = None,
    ) -> None:
        """An ellipse; `span`: the least and greatest cx."""
        # Its distance is that of a circle stretched: along the long axis the edge is softer.
        low, high = span or (cx, cx)
        grow = SOFT / radius * (max(rx, ry) / min(rx, ry) - 1)
        more = (grow, 0.0) if rx > ry else (0.0, grow)
        area = (low - rx - more[0], high + rx + more[0], cy - ry - more[1], cy + ry + more[1])
        paint(area, ellipse(cx, cy, rx, ry), tint, presence)

    # Hair behind the head.
    paint((-1.18, 1.18, -0.9, 2.0), box(0.0, 0.55, 1.18, 1.45, 0.6), hair, long)
    oval(0.0, -0.2, 1.5, 1.42, hair, curly)
    oval(-0.2 * turn, -1.35, 0.52, 0.5, hair, bun, span=(-0.2, 0.2))
    # Body.
    trunk = (-1.42, 1.42, 1.35, 6.0)
    upper, lower = box(0.0, 2.9, 1.42, 1.55, 0.75), box(0.0, 4.4, 1.42, 1.6, 0.1)

    def body(u: Tensor, v: Tensor) -> Tensor:
        return torch.minimum(upper(u, v), lower(u, v))

    def striped(u: Tensor, v: Tensor) -> Tensor:
        return torch.maximum(body(u, v) + 0.06, (torch.remainder(v - 1.6, 0.95) - 0.48).abs() - 0.2)

    def dotted(u: Tensor, v: Tensor) -> Tensor:
        away = (torch.remainder(u + 0.45, 0.9) - 0.45) ** 2 + (torch.remainder(v - 1.7, 0.9) - 0.45) ** 2
        return torch.maximum(body(u, v) + 0.1, torch.sqrt(away + 1e-6) - 0.24)

    paint(trunk, body, clothes)
    paint(trunk, striped, pale, stripes)
    paint(trunk, dotted, pale, dots)
    # Arm that waves.
    wrist = 1.5 + 0.28 * swing

    def arm(u: Tensor, v: Tensor) -> Tensor:
        along = ((2.1 - v) / 2.0).clamp(0, 1)
        return (u - (1.2 + (wrist - 1.2) * along)).abs() * 0.95 - 0.3 + torch.relu(v - 2.6) + torch.relu(0.1 - v)

    paint((0.88, 2.1, -0.2, 2.9), arm, clothes, at(hand))
    oval(wrist, 0.1, 0.36, 0.38, skin, at(hand), span=(1.22, 1.78))
    # Neck and head.
    paint((-0.38, 0.38, 0.65, 1.65), box(0.0, 1.15, 0.38, 0.5, 0.1), shadow)
    oblong, jaw = ellipse(0.0, 0.0, wide, tall), box(0.0, 0.05, wide * 0.93, tall * 0.95, 0.35)

    def face(u: Tensor, v: Tensor) -> Tensor:
        return oblong(u, v) * (1 - square) + jaw(u, v) * square

    paint((-1.05, 1.05, -1.2, 1.2), face, skin)
    gaze = 0.42 * turn
    paint((-1.05, 1.05, 0.32, 1.2), lambda u, v: torch.maximum(face(u, v) + 0.02, 0.32 - v), stubble, beard)
    # Hair in front: a cap above the forehead, by style.
    crown, temples = ellipse(0.0, -0.08, wide * 1.1, tall * 1.08), ellipse(0.0, 0.0, wide * 1.12, tall * 1.05)

    def cap(u: Tensor, v: Tensor) -> Tensor:
        return torch.maximum(crown(u, v), v + 0.42 - 0.12 * (u - gaze) ** 2)

    def sides(u: Tensor, v: Tensor) -> Tensor:
        return torch.maximum(torch.maximum(temples(u, v), 0.74 - (u - 0.3 * gaze).abs()), v - 0.55)

    def spikes(u: Tensor, v: Tensor) -> Tensor:
        teeth = v + 1.2 + 0.42 * (torch.remainder(u * 1.5 + 0.5, 1.0) - 0.5).abs() * 2 - 0.35
        return torch.maximum(teeth.abs() - 0.32, u.abs() - 0.92)

    paint((-1.2, 1.2, -1.4, 0.1), cap, hair, 1 - bald)
    paint((-1.25, 1.25, -1.25, 0.55), sides, hair, torch.maximum(long, curly))
    paint((-0.92, 0.92, -1.6, -0.5), spikes, hair, spiky)
    # Eyes, glasses, nose, mouth.
    near = 1 - 0.15 * turn.abs()
    for sign in (-1.0, 1.0):
        middle = gaze + sign * 0.38 * near
        span = (-0.8, 0.1) if sign < 0 else (-0.1, 0.8)
        lens = (span[0] - 0.42, span[1] + 0.42, -0.4, 0.48)
        oval(middle, 0.02, 0.24, 0.19, white, span=span)
        oval(middle + 0.06 * turn, 0.03, 0.14, 0.16, eyes, span=(span[0] - 0.06, span[1] + 0.06))
        paint(lens, outline(ellipse(middle, 0.04, 0.34, 0.33)), black, ring)
        paint(lens, outline(box(middle, 0.04, 0.33, 0.26, 0.03)), black, frame)
    paint((-0.5, 0.5, 0.16, 0.4), box(gaze, 0.28, 0.07, 0.12, 0.05), shadow)
    oval(gaze, 0.47, 0.34, 0.13, stubble, moustache, span=(-0.42, 0.42))
    oval(gaze, 0.66, 0.26, 0.09, lips, span=(-0.42, 0.42))
    return picture


def ellipse(cx: Tensor | float, cy: float, rx: Tensor | float, ry: Tensor | float) -> Shape:
    """Distance to an ellipse in its narrower radius (negative inside)."""

    def distance(u: Tensor, v: Tensor) -> Tensor:
        narrow = torch.minimum(rx, ry) if isinstance(rx, Tensor) else min(rx, ry)
        return (torch.sqrt(((u - cx) / rx) ** 2 + ((v - cy) / ry) ** 2 + 1e-6) - 1) * narrow

    return distance


def box(cx: Tensor | float, cy: float, rx: Tensor | float, ry: Tensor | float, corner: float) -> Shape:
    """Distance to a box of half width rx and half height ry with rounded corners."""

    def distance(u: Tensor, v: Tensor) -> Tensor:
        qx, qy = (u - cx).abs() - rx + corner, (v - cy).abs() - ry + corner
        outside = torch.sqrt(qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2 + 1e-6)
        return outside + torch.maximum(qx, qy).clamp(max=0) - corner

    return distance


def outline(shape: Shape) -> Shape:
    """The rim of a shape, 0.15 head radii thick."""
    return lambda u, v: shape(u, v).abs() - 0.075
