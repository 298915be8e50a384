"""The routes of the button that downloads missing files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

ROOT = "/identity_grpo/downloads"
VAE = "wan_2.1_vae.safetensors"


@pytest.fixture
def ask(pack):
    """`ask(method, path, **options)`: status and JSON of the answer."""
    from server import PromptServer

    async def go(method: str, path: str, options: dict):
        app = web.Application()
        app.add_routes(r for r in PromptServer.instance.routes if getattr(r, "path", "").startswith(ROOT))
        async with TestClient(TestServer(app)) as client, client.request(method, ROOT + path, **options) as answer:
            return answer.status, await answer.json()

    return lambda method, path="", **options: asyncio.run(go(method, path, options))


@pytest.fixture
def started(pack, monkeypatch) -> list:
    """The lists of names whose download was started, none of which is made."""
    from identity_grpo.nodes import downloads

    found: list = []
    monkeypatch.setattr(downloads._fetch, "start", lambda items, models: found.append([item.name for item in items]))
    return found


@pytest.fixture
def vae(pack):
    import folder_paths

    place = Path(folder_paths.get_folder_paths("vae")[0], VAE)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"")
    yield place
    place.unlink()


def test_each_file_is_described_by_the_value_that_a_loader_has_for_it(ask):
    status, state = ask("GET")
    assert status == 200 and state["download"] is None
    choices = {file["name"]: file["choice"] for file in state["files"]}
    assert choices["wan2.1_vace_1.3B_fp16.safetensors"] == "diffusion_models/wan2.1_vace_1.3B_fp16.safetensors"
    assert choices[VAE] == VAE and choices["identity_reward"] == "identity_reward"
    assert choices["identity_grpo_released"] == "identity_grpo_released/"
    assert all(file["page"].startswith("https://") and file["licence"] for file in state["files"])


def test_only_what_is_missing_is_downloaded(ask, started, vae):
    (there,) = [file["there"] for file in ask("GET")[1]["files"] if file["name"] == VAE]
    assert there
    status, _ = ask("POST", "/start", json={"names": [VAE, "identity_reward", "identity_reward"]})
    assert status == 200 and started == [["identity_reward"]]
    assert ask("POST", "/start", json={"names": [VAE]})[0] == 409 and len(started) == 1


@pytest.mark.parametrize("names", ["all", None, [], ["/etc/passwd"], [["a"]], ["https://example.org/a.safetensors"]])
def test_only_lists_of_the_catalogues_names_are_taken(ask, started, names):
    status, answer = ask("POST", "/start", json={"names": names})
    assert status == 409 and answer["error"] and started == []


@pytest.mark.parametrize("path", ["/start", "/stop", "/sizes"])
def test_a_form_of_another_page_is_refused(ask, started, path):
    assert ask("POST", path, data={"names": VAE})[0] == 415 and started == []
    assert ask("POST", path, json={}, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
