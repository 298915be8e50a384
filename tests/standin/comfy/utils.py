"""The progress bar, and resizing of pictures."""

from __future__ import annotations

import time

from torch.nn.functional import interpolate

PROGRESS_BAR_HOOK = None


class ProgressBar:
    """Calls the hook for the first, the last and every step with a preview; for others at most ten times a second."""

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total, self.current, self.node_id = total, 0, node_id
        self.hook, self._sent = PROGRESS_BAR_HOOK, None

    def update_absolute(self, value: int, total: int | None = None, preview=None) -> None:
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        due = self._sent is None or self.current >= self.total or time.perf_counter() - self._sent >= 0.1
        if self.hook and (due or preview is not None):
            self._sent = time.perf_counter()
            self.hook(self.current, self.total, preview, node_id=self.node_id)

    def update(self, value: int) -> None:
        self.update_absolute(self.current + value)


def common_upscale(samples, width: int, height: int, upscale_method: str, crop: str):
    """[N, C, H, W] resized; `center` first crops it to the new proportions."""
    if crop == "center":
        old_height, old_width = samples.shape[-2:]
        x = max(0, round((old_width - old_height * width / height) / 2))
        y = max(0, round((old_height - old_width * height / width) / 2))
        samples = samples[..., y : old_height - y, x : old_width - x]
    return interpolate(samples, size=(height, width), mode=upscale_method)
