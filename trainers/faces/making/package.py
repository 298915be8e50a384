"""The committed weights, from the npm package of face-api: `python -m trainers.faces.making.package PACKAGE.tgz`.

Get the package with `npm pack @vladmandic/face-api@1.7.15`. The 8-bit numbers are kept as they are, each tensor with
its scale and minimum; the licence is written beside them.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ...files import write_atomic
from ..weights import FILE, SCALES

MODELS = {
    "detector": "ssd_mobilenetv1_model",
    "landmarks": "face_landmark_68_model",
    "embedder": "face_recognition_model",
}


def convert(package: tarfile.TarFile) -> bytes:
    """The weights of the three networks as one safetensors file; names are `<network>/<name in the package>`."""
    tensors, scales = {}, {}
    for network, model in MODELS.items():
        data = _read(package, f"model/{model}.bin")
        (group,) = json.loads(_read(package, f"model/{model}-weights_manifest.json"))
        offset = 0
        for entry in group["weights"]:
            quantization = entry.get("quantization")
            kind, size = np.dtype((quantization or entry)["dtype"]), int(np.prod(entry["shape"]))
            name, found = f"{network}/{entry['name']}", np.frombuffer(data, kind, size, offset)
            offset += found.nbytes
            if entry["dtype"] == "float32" and entry["shape"]:
                tensors[name] = found.reshape(entry["shape"])
                if quantization:
                    scales[name] = [quantization["scale"], quantization["min"]]
        if offset != len(data):
            raise ValueError(f"{model} has {len(data)} bytes, and its manifest names {offset}")
    return save(tensors, {SCALES: json.dumps(scales)})


def _read(package: tarfile.TarFile, name: str) -> bytes:
    return package.extractfile(f"package/{name}").read()


def main(path: str) -> None:
    with tarfile.open(path) as package:
        FILE.parent.mkdir(exist_ok=True)
        write_atomic(FILE, convert(package))
        write_atomic(FILE.parent / "LICENSE.face-api.txt", _read(package, "LICENSE"))
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
