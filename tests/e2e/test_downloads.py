"""The button that downloads what a workflow lacks, in the real editor, from a server of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub import BLOCK

from trainers.downloads.catalog import COMFY, TEXT_ENCODER, VACE, VAE

WORKFLOW = next((Path(__file__).parents[2] / "workflows").glob("02_*.json"))


@pytest.fixture(scope="module")
def seen(browse, comfyui, hub):
    """What the editor shows; the large file lies there already, and all are removed at the end."""
    hub.files[COMFY, f"split_files/{VACE.folder}/{VACE.name}"] = b"v" * (3 * BLOCK)
    hub.files[COMFY, f"split_files/{VAE.folder}/{VAE.name}"] = b"a" * 1000
    places = [comfyui.base / "models" / item.folder / item.name for item in (TEXT_ENCODER, VACE, VAE)]
    places[0].parent.mkdir(parents=True, exist_ok=True)
    places[0].write_bytes(b"")
    try:
        yield browse("downloads.cjs", "", WORKFLOW, hub.url) | {"files": [p.stat().st_size for p in places]}
    finally:
        for place in places:
            place.unlink(missing_ok=True)


def test_the_loader_offers_what_is_missing_with_source_size_and_licence(seen):
    assert seen["before"] == ["IdentityGRPOLoadModel"] and seen["values"] == 9
    assert VACE.name in seen["asked"] and VAE.name in seen["asked"] and TEXT_ENCODER.name not in seen["asked"]
    assert "3.1 MB" in seen["asked"] and VACE.licence in seen["asked"] and VACE.page in seen["asked"]


def test_a_stopped_download_is_continued_and_the_button_goes(seen):
    assert seen["files"] == [0, 3 * BLOCK, 1000]
    assert seen["after"] == [] and seen["listed"]
