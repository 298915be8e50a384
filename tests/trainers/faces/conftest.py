"""Real faces of the public domain, and clips made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
NAMES = ("collins", "obama", "hopper")


@pytest.fixture(scope="session")
def portraits() -> dict[str, np.ndarray]:
    """uint8 [H, 200, 3] of three people; their faces are about 95 pixels wide."""
    return {name: np.array(Image.open(PICTURES / f"{name}.jpg").convert("RGB")) for name in NAMES}


@pytest.fixture(scope="session")
def scene(portraits):
    """A function: a frame uint8 [240, 416, 3] with (name, left, top, width of the portrait) pasted."""

    def make(*people: tuple[str, int, int, int]) -> np.ndarray:
        frame = Image.new("RGB", (416, 240), (90, 120, 110))
        for name, left, top, width in people:
            picture = Image.fromarray(portraits[name])
            frame.paste(picture.resize((width, round(width * picture.height / picture.width))), (left, top))
        return np.array(frame)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run in two processes on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
