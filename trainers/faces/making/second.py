"""A second embedder, of another network and other training data, to check choices by the face report.

The face descriptor of `@vladmandic/human` 3.3.6 (MIT), a MobileNet known as HSE-FaceRes; its graph is run here by
torch. `photos` gets the package. The weights are used for the evidence and never committed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FOLDER = Path("human/package/models")
SIDE, LAST = 224, "global_pooling/Mean"
MARGIN = 1.0  # of a face's longer side: the square that is cut out around its middle


class SecondEmbedder:
    """Unit vectors of faces, to be compared by their cosine."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of `photos`."""
        content = json.loads((folder / FOLDER / "faceres.json").read_text(encoding="utf-8"))
        data, place = (folder / FOLDER / "faceres.bin").read_bytes(), 0
        self.weights: dict[str, Tensor] = {}
        for part in content["weightsManifest"]:
            for weight in part["weights"]:
                kind = np.dtype(weight.get("quantization", weight)["dtype"])
                count = int(np.prod(weight["shape"], dtype=int))
                values = np.frombuffer(data, kind, count, place).astype(np.float32).reshape(weight["shape"])
                place += count * kind.itemsize
                self.weights[weight["name"]] = torch.from_numpy(values)
        self.nodes = {node["name"]: node for node in content["modelTopology"]["node"]}

    @torch.no_grad()
    def __call__(self, frame: np.ndarray, box: tuple[float, float, float, float]) -> Tensor:
        """float32 [1024] of the face in `box` (x0, y0, x1, y1 in pixels) of a frame uint8 [H, W, 3]."""
        side = MARGIN * max(box[2] - box[0], box[3] - box[1])
        corner = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
        steps = (torch.arange(SIDE) + 0.5) / SIDE * side
        x, y = torch.meshgrid(steps + corner[0], steps + corner[1], indexing="xy")
        height, width = frame.shape[:2]
        grid = torch.stack([x / width * 2 - 1, y / height * 2 - 1], -1)[None]
        pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
        face = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return F.normalize(self._value(LAST, {"input_1": face}), dim=1)[0]

    def _value(self, name: str, known: dict[str, Tensor]) -> Tensor:
        """What a node of the graph gives; pictures are [1, channels, height, width]."""
        name = name.split(":")[0]
        if name in known:
            return known[name]
        node = self.nodes[name]
        kind = node["op"]
        if kind == "Const":
            return self.weights[name]
        first, *others = (self._value(source, known) for source in node.get("input", ()))
        if kind in ("Conv2D", "DepthwiseConv2dNative"):
            found = _convolved(first, others[0], int(node["attr"]["strides"]["list"]["i"][1]), kind != "Conv2D")
        elif kind == "Mean":
            found = first.mean((2, 3))
        elif kind == "Relu":
            found = first.relu()
        else:
            act = {"Add": torch.add, "Mul": torch.mul, "Minimum": torch.minimum, "Maximum": torch.maximum}[kind]
            other = others[0]
            found = act(first, other.reshape(1, -1, 1, 1) if other.ndim == 1 else other)
        known[name] = found
        return found


def _convolved(x: Tensor, kernel: Tensor, stride: int, depthwise: bool) -> Tensor:
    """With TensorFlow's "same" padding: where it is uneven, more is below and to the right."""
    weight = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
    size = weight.shape[-1]
    total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[-2:]]
    x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    return F.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)
