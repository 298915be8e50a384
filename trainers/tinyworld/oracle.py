"""TinyWorld's oracle: whether a video shows the scene's people in their places, acting as the prompt says.

It uses the renderer and no reward. Analysis by synthesis: at each place where the scene has a person, all its people
are rendered in nine directions of view and slid over the frame. The best fit gives identity, height and direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from .people import appearance, sample_people
from .render import HEAD, HEAD_LINE, SHADE, Window, draw_people, motion
from .scenes import CROSS, JUMP, MAX_PEOPLE, STAND, TURN, WAVE, SceneBatch

TURNS = 9
# A template covers this many pixels around the head's centre (for 48 rows), and is slid by so many.
TOP, BOTTOM, SIDE = 15, 25, 13
LEFT, UP, DOWN = 3, 9, 2
MARGIN = 32
# Another order must fit this much better (in likeness, per person moved) to count as a swap: an even mixture is none.
SWAP_MARGIN = 0.1
OFF_SKY = 0.15  # of a channel's range [-1, 1]: a pixel that differs more from the sky belongs to a person


@dataclass(frozen=True)
class OracleResult:
    """Measures of each video, float32 [B] unless a shape is given. Frames in which people pass closely are left out.

    identity: mean over people and frames of the likeness to the own reference (1: exact, 0: like a stranger); swapped
    and missing people count as 0.
    per_person [B, 3]: the same of each person.
    swapped, missing: shares of people and frames.
    quality: how even the flat backdrop is (1: exactly its colour, 0: as far off as counts as foreground).
    count_right: share of the people who are present, 0 if there is a person too many.
    action_right: share of the people who are present and act as the scene says.
    alignment: mean of count_right and action_right.
    """

    identity: Tensor
    per_person: Tensor
    swapped: Tensor
    missing: Tensor
    quality: Tensor
    count_right: Tensor
    action_right: Tensor

    @property
    def alignment(self) -> Tensor:
        return (self.count_right + self.action_right) / 2


@torch.no_grad()
def measure(videos: Tensor, scenes: SceneBatch) -> OracleResult:
    """Measure videos uint8 [B, F, 48, 80, 3] against the scenes that they should show, on the videos' device.

    Raises ValueError for other shapes and for an empty batch.
    """
    if videos.ndim != 5 or tuple(videos.shape[2:]) != (48, 80, 3) or not len(videos) == len(scenes) > 0:
        raise ValueError(f"expected videos [{len(scenes)}, F, 48, 80, 3], one per scene, got {list(videos.shape)}")
    scenes = scenes.to(videos.device)
    batch = 64 if videos.is_cuda else 8
    parts = [
        _measure(videos[i : i + batch].float() / 127.5 - 1, scenes[i : i + batch]) for i in range(0, len(videos), batch)
    ]
    return OracleResult(*(torch.cat([getattr(p, n) for p in parts]) for n in OracleResult.__dataclass_fields__))


def _measure(videos: Tensor, scenes: SceneBatch) -> OracleResult:
    _, frames, height, width, _ = videos.shape
    device = videos.device
    sky = videos[:, :, :2].flatten(1, 3).median(1).values
    still = scenes.present().unsqueeze(-1)
    gone = _gone(videos, scenes, sky)
    # People who should cross but stay are searched where they stayed: that is a wrong action, not a swap.
    stays = (scenes.action == CROSS) & ~(gone & (scenes.action == CROSS)).any(1, keepdim=True)
    x = motion(scenes, frames, width / height, action=torch.where(stays, STAND, scenes.action)).x
    distance, up, turned = _fit(videos, scenes, x, sky)
    same, stranger = reference_distances()
    likeness = (1 - ((distance - same) / (stranger - same)).clamp(0, 1).sqrt()) * still.unsqueeze(-1)

    present = (_present(videos, x, up, sky) | (likeness.amax(3) > 0.55)) & still
    clear = _clear(x, still)
    orders = list(permutations(range(MAX_PEOPLE)))
    best = torch.stack([sum(likeness[:, k, :, who[k]] for k in range(MAX_PEOPLE)) for who in orders])
    order = torch.tensor(orders, device=device)
    own = torch.arange(MAX_PEOPLE, device=device)
    moved = (order != own)[:, None]
    price = SWAP_MARGIN * moved.sum(-1) + 10.0 * (moved & ~scenes.present()).any(-1)
    best = (best - price.unsqueeze(-1)).argmax(0)
    right = (order[best] == own).permute(0, 2, 1)
    own_likeness = likeness[:, own, :, own].permute(1, 0, 2)
    scores = own_likeness * right * present
    weight = clear.sum(2).clamp(min=1e-6)
    per_person = (scores * clear).sum(2) / weight
    people = scenes.count.float()
    swapped = (((~right) & present) * clear).sum((1, 2)) / clear.sum((1, 2)).clamp(min=1e-6)
    missing = ((~present & still) * clear).sum((1, 2)) / clear.sum((1, 2)).clamp(min=1e-6)

    here = ((present * clear).sum(2) / weight > 0.5) & scenes.present()
    extra = _extra(videos, x, sky, still)
    count_right = here.sum(1) / people * (~extra).float()
    acts = _acts(videos, scenes, x, up, turned, clear, gone, sky) & here
    identity, quality = per_person.sum(1) / people, _quality(videos, sky)
    return OracleResult(identity, per_person, swapped, missing, quality, count_right, acts.sum(1) / people)


def _grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Template coordinates in units of the picture's height."""
    rows = torch.arange(-TOP, BOTTOM, device=device).view(1, 1, -1, 1) / 48
    columns = torch.arange(-SIDE, SIDE + 1, device=device).view(1, 1, 1, -1) / 48
    return rows, columns


def _templates(looks: Tensor, sky: Tensor, offset: float = 0.0) -> Tensor:
    """People [N, TURNS, h, w, 3] of looks [N, P] rendered on sky colours [N, 3], `offset` pixels right and down."""
    none = looks.new_zeros(len(looks) * TURNS)
    turn = torch.linspace(-1, 1, TURNS, device=looks.device).repeat(len(looks))
    window = Window(TOP, BOTTOM - 1, SIDE, SIDE)
    aside = none - offset
    drawn = draw_people(looks.repeat_interleave(TURNS, 0), HEAD * 48, window, aside, aside, turn, none, none)
    drawn = drawn.unflatten(0, (len(looks), TURNS)).movedim(2, -1)
    return drawn[..., :3] + (1 - drawn[..., 3:]) * sky.view(-1, 1, 1, 1, 3)


@lru_cache(maxsize=4)
def _weights(device: torch.device) -> Tensor:
    """Weights [TURNS, h, w], each summing to 1: hair, face, eyes and clothes count equally, whatever their sizes.

    Pixels where an arm may wave have weight 0.
    """
    rows, columns = _grid(device)
    u, v = columns / HEAD, rows / HEAD
    centre = 0.42 * torch.linspace(-1, 1, TURNS, device=device).view(-1, 1, 1, 1)
    head = (u**2 + (v / 1.05) ** 2) < 1
    eyes = ((u - centre).abs() < 0.8) & ((v - 0.03).abs() < 0.34) & head
    arm = (u > 0.8) & (v > -0.4)
    regions = [
        ((u.abs() < 1.5) & (v > -1.9) & (v < 0.9) & ~head & ~arm).expand(TURNS, -1, -1, -1),
        head & ~eyes,
        eyes,
        ((u.abs() < 1.2) & (v > 1.75) & (v < 3.0) & ~arm).expand(TURNS, -1, -1, -1),
    ]
    return sum(r.float() / r.sum((2, 3), keepdim=True) for r in regions)[:, 0] / len(regions)


@lru_cache(maxsize=1)
def reference_distances() -> tuple[float, float]:
    """Weighted squared colour distances at likeness 1 and at likeness 0, of people who look ahead: between a person and
    the same person moved by a third of a pixel, and between two different people."""
    looks = appearance(sample_people(256, torch.Generator().manual_seed(0)))
    sky = torch.full((256, 3), 0.75)
    weights = _weights(torch.device("cpu"))[TURNS // 2].unsqueeze(-1)

    def distance(a: Tensor, b: Tensor) -> float:
        return ((a - b) ** 2 * weights).sum((1, 2, 3)).mean().item()

    drawn, aside = _templates(looks, sky)[:, TURNS // 2], _templates(looks, sky, offset=0.33)[:, TURNS // 2]
    return distance(drawn, aside), distance(drawn[:128], drawn[128:])


def _windows(videos: Tensor, x: Tensor) -> Tensor:
    """Pixels around each person's place [B, 3, F, h + UP + DOWN, w + 2 LEFT, 3]; x [B, 3, F] in units of the height."""
    height = videos.shape[2]
    sides = (MARGIN, MARGIN, MARGIN, MARGIN, 0, 0)
    padded = F.pad(videos.permute(0, 4, 1, 2, 3), sides, mode="replicate").permute(0, 2, 3, 4, 1)
    first_row = round(HEAD_LINE * height) - TOP - UP + MARGIN
    rows = torch.arange(TOP + BOTTOM + UP + DOWN, device=videos.device) + first_row
    columns = torch.arange(-SIDE - LEFT, SIDE + LEFT + 1, device=videos.device) + MARGIN
    columns = (x * height - 0.5).round().long().unsqueeze(-1) + columns
    b = torch.arange(len(videos), device=videos.device).view(-1, 1, 1, 1, 1)
    f = torch.arange(videos.shape[1], device=videos.device).view(1, 1, -1, 1, 1)
    return padded[b, f, rows.view(1, 1, 1, -1, 1), columns.clamp(0, padded.shape[3] - 1).unsqueeze(3)]


def _fit(videos: Tensor, scenes: SceneBatch, x: Tensor, sky: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best fits at each place: distance [B, 3, F, 3] to each person of the scene and, of the best of them, the rise in
    pixels [B, 3, F] (upwards) and the direction of view [B, 3, F] in [-1, 1]."""
    b, _, frames = x.shape
    device = videos.device
    windows = _windows(videos, x).flatten(1, 2)
    wide = windows.shape[3]
    weights = _weights(device)
    counted = weights.sum(0) > 0
    weights = weights[:, counted]  # [TURNS, pixels]
    drawn = _templates(appearance(scenes.people).flatten(0, 1), sky.repeat_interleave(MAX_PEOPLE, 0))
    drawn = drawn[:, :, counted].unflatten(0, (b, MAX_PEOPLE))  # [B, 3, TURNS, pixels, 3]
    row, column = counted.nonzero().unbind(1)
    shifts = torch.arange(UP + DOWN + 1, device=device)[:, None] * wide + torch.arange(2 * LEFT + 1, device=device)
    at = shifts.flatten()[:, None] + row * wide + column  # [shifts, pixels]
    flat = windows.flatten(2, 3)
    square = (flat**2).sum(-1)[:, :, at] @ weights.T  # [B, 3F, shifts, TURNS]
    patches = flat[:, :, at].flatten(3).flatten(1, 2)
    weighted = drawn * weights.unsqueeze(-1)
    cross = patches @ weighted.flatten(3).flatten(1, 2).transpose(1, 2)
    cross = cross.unflatten(1, (-1, len(at))).unflatten(3, (MAX_PEOPLE, TURNS))
    constant = (drawn * weighted).sum((3, 4))[:, None, None]
    fits = (square.unsqueeze(3) - 2 * cross + constant).clamp(min=0)
    fits = fits.transpose(2, 3).flatten(3)  # [B, 3F, 3, shifts TURNS]
    distance, best = fits.min(3)
    best = best.gather(2, distance.argmin(2, keepdim=True)).squeeze(2)
    up = UP - best // TURNS // (2 * LEFT + 1)
    turn = (best % TURNS - TURNS // 2) / (TURNS // 2)
    shape = (MAX_PEOPLE, frames)
    return distance.unflatten(1, shape), up.unflatten(1, shape).float(), turn.unflatten(1, shape)


def _foreground(videos: Tensor, sky: Tensor) -> Tensor:
    """Pixels [B, F, H, W] that do not have the sky's colour [B, 3]."""
    return (_off_sky(videos, sky) > OFF_SKY).float()


def _quality(videos: Tensor, sky: Tensor) -> Tensor:
    """[B]: 1 minus the mean distance of backdrop pixels from their colour, in units of `OFF_SKY`."""
    off = _off_sky(videos, sky)
    backdrop = off <= OFF_SKY
    mean = (off * backdrop).sum((1, 2, 3)) / backdrop.sum((1, 2, 3)).clamp(min=1)
    return 1 - mean / OFF_SKY


def _off_sky(videos: Tensor, sky: Tensor) -> Tensor:
    """Largest difference [B, F, H, W] of a pixel's channels from the sky's colour [B, 3], which darkens downwards."""
    shade = 1 - SHADE * (torch.arange(videos.shape[2], device=videos.device) + 0.5) / videos.shape[2]
    return (videos - sky.view(-1, 1, 1, 1, 3) * shade.view(-1, 1, 1)).abs().amax(-1)


def _share(mask: Tensor, x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    """Share of mask [B, F, H, W] that is set in a box around (x, y) [B, N, F], in heights."""
    height, width = mask.shape[2:]
    rows = (torch.arange(height, device=mask.device) + 0.5) / height
    columns = (torch.arange(width, device=mask.device) + 0.5) / height
    beside = (columns - x[..., None, None]).abs() < half_width
    inside = beside & ((rows[:, None] - y[..., None, None]).abs() < half_height)
    return (mask.unsqueeze(1) * inside).sum((3, 4)) / inside.sum((3, 4)).clamp(min=1)


def _present(videos: Tensor, x: Tensor, up: Tensor, sky: Tensor) -> Tensor:
    """Bool [B, 3, F]: a head and a body are present."""
    mask = _foreground(videos, sky)
    y = HEAD_LINE - up / 48
    head = _share(mask, x, y, 0.6 * HEAD, 0.7 * HEAD) > 0.6
    return head & (_share(mask, x, y + 2.3 * HEAD, 0.7 * HEAD, 0.4 * HEAD) > 0.5)


def _clear(x: Tensor, still: Tensor) -> Tensor:
    """Weight [B, 3, F] of a person's frames: 0 while another person passes in front or behind."""
    apart = (x[:, :, None] - x[:, None]).abs() / HEAD
    oneself = torch.eye(MAX_PEOPLE, dtype=torch.bool, device=x.device)[None, :, :, None]
    nobody = ~(still[:, :, None] & still[:, None]) | oneself
    nearest = apart.masked_fill(nobody, 9.0).amin(2)
    return ((nearest - 1.6) / 1.0).clamp(0, 1) * still


def _extra(videos: Tensor, x: Tensor, sky: Tensor, still: Tensor) -> Tensor:
    """Bool [B]: a person stands where the scene has none."""
    height, width = videos.shape[2:4]
    columns = (torch.arange(width, device=videos.device) + 0.5) / height
    near = (((columns - x.unsqueeze(-1)).abs() < 2.0 * HEAD) & still.unsqueeze(-1)).any(1)
    band = _foreground(videos, sky)[:, :, int(0.3 * height) : int(0.6 * height)]
    stray = (band.mean(2) > 0.6) & ~near
    return stray.sum(2).float().mean(1) > HEAD * height


def _gone(videos: Tensor, scenes: SceneBatch, sky: Tensor) -> Tensor:
    """Bool [B, 3]: half way through the clip this person's first place is empty; for people who should cross: emptier
    than the place where the two would meet."""
    frames, height, width = videos.shape[1:4]
    x = motion(scenes, 3, width / height).x
    middle = _foreground(videos[:, frames // 2 : frames // 2 + 1], sky)
    y = torch.full_like(x[..., :1], HEAD_LINE)
    first, meeting = (_share(middle, x[..., i : i + 1], y, 0.3 * HEAD, 0.4 * HEAD).squeeze(2) for i in (0, 1))
    return torch.where(scenes.action == CROSS, first < meeting, first < 0.5)


def _acts(
    videos: Tensor, scenes: SceneBatch, x: Tensor, up: Tensor, turned: Tensor, clear: Tensor, gone: Tensor, sky: Tensor
) -> Tensor:
    """Bool [B, 3]: the person does what the scene says, and no other action."""
    seen = clear > 0.5
    rise = up.masked_fill(~seen, -99).amax(2) - up.masked_fill(~seen, 99).amin(2)
    swing = turned.masked_fill(~seen, -9).amax(2) - turned.masked_fill(~seen, 9).amin(2)
    # Between shoulder and hand, below the hair.
    y = HEAD_LINE - up / 48 + 0.95 * HEAD
    hand = _share(_foreground(videos, sky), x + 1.42 * HEAD, y, 0.17 * HEAD, 0.25 * HEAD)
    raised = (hand * seen).sum(2) / seen.sum(2).clamp(min=1) > 0.55
    jumps, turns = rise >= 3, swing > 0.9
    action = scenes.action
    return torch.where(
        action == CROSS,
        gone,
        torch.where(
            action == JUMP,
            jumps,
            torch.where(
                action == TURN,
                turns & ~jumps & ~gone,
                torch.where(action == WAVE, raised & ~jumps & ~gone, ~jumps & ~turns & ~gone & ~raised),
            ),
        ),
    )
