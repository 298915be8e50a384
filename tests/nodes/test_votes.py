"""The node that collects pairs, and the routes of the voting dialog."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from trainers.preference.folder import PairFolder


@pytest.fixture
def output(pack, tmp_path, monkeypatch) -> Path:
    """ComfyUI's output folder, empty."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path / "identity_grpo_pairs"


@pytest.fixture
def clips() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {f"clip{i}": torch.rand(5, 16, 24, 3, generator=generator) for i in range(3)}


@pytest.fixture
def people() -> dict:
    return {"ref0": torch.rand(2, 20, 20, 3, generator=torch.Generator().manual_seed(1))}


def test_every_two_of_the_connected_videos_are_a_pair(node_output, output, clips, people):
    found = node_output("IdentityGRPOVote", name="My Votes!", clips=clips, references=people, prompt="two people")
    assert found.args == (str(output / "my-votes"),)
    records = PairFolder(output / "my-votes").read()
    assert len(records.pairs) == 3 and {len(r.references) for r in records.pairs.values()} == {2}
    node_output("IdentityGRPOVote", name="my votes", clips=clips, references=people, prompt="two people")
    assert len(PairFolder(output / "my-votes").read().pairs) == 3


def test_names_of_any_script_are_folders_of_their_own(node_output, output, clips, people):
    """Without their letters two names such as these would be one folder, `1`."""
    for name in ("\u674e 1", "\u738b 1"):
        found = node_output("IdentityGRPOVote", name=name, clips=dict(list(clips.items())[:2]), references=people)
        assert found.ui["text"][0].startswith(f"{name.replace(' ', '-')}: 1 pair, 0 votes")
    assert sorted(folder.name for folder in output.iterdir()) == ["\u674e-1", "\u738b-1"]


@pytest.mark.parametrize(
    "given, problem",
    [
        ({}, "has no pairs yet"),
        ({"name": "../.."}, "no letter or digit"),
        ({"clips": {"clip0": torch.rand(2, 16, 16, 3)}}, "connect two or more"),
        ({"clips": {f"clip{i}": torch.rand(2, 16, 16, 3) for i in range(2)}}, "no reference image"),
    ],
)
def test_what_lacks_for_a_pair_is_said(pack, node_output, output, given, problem):
    with pytest.raises(pack.UserError, match=problem):
        node_output("IdentityGRPOVote", **given)
    assert not output.exists()


@pytest.fixture
def ask(pack):
    """`ask((method, path, options), …)`: status, headers and content of each answer, one after the other."""
    from server import PromptServer

    async def go(asked):
        app = web.Application()
        app.add_routes(
            route for route in PromptServer.instance.routes if "/identity_grpo/votes" in getattr(route, "path", "")
        )
        found = []
        async with TestClient(TestServer(app)) as client:
            for method, path, options in asked:
                async with client.request(method, "/identity_grpo/votes/" + path, **options) as answer:
                    data = await answer.read()
                    is_json = answer.content_type == "application/json"
                    found.append((answer.status, answer.headers, json.loads(data) if is_json else data))
        return found

    return lambda *asked: asyncio.run(go(asked))


@pytest.fixture
def folder(node_output, output, clips, people) -> PairFolder:
    node_output("IdentityGRPOVote", name="votes", clips=clips, references=people, prompt="two people")
    return PairFolder(output / "votes")


def get(path: str, **options) -> tuple:
    return "GET", path, options


def post(path: str, body: dict, **options) -> tuple:
    return "POST", path, {"json": body, **options}


def test_votes_and_undo_through_the_routes(ask, folder):
    ((status, _, state),) = ask(get("votes?who=anna"))
    question = state["question"]
    assert status == 200 and state["voted"] == 0 and state["pairs"] == 3 and question["prompt"] == "two people"
    vote = {"who": "anna", "pair": question["pair"], "turn": 0, "swapped": question["swapped"], "verdict": "A"}
    (_, _, after), (again, _, refused), (_, _, undone) = ask(
        post("votes/vote", vote), post("votes/vote", vote), post("votes/undo", {"who": "anna"})
    )
    assert after["question"]["pair"] == state["following"]["pair"] and after["voted"] == 1
    assert again == 409 and "answered already" in refused["error"]
    assert undone["question"] == question
    assert folder.read().votes == {}


def test_a_clip_is_served_as_a_sheet_of_its_frames(ask, folder, clips):
    (pair,) = [name for name, r in folder.read().pairs.items()][:1]
    ((status, headers, data),) = ask(get(f"votes/pairs/{pair}/a"))
    layout = json.loads(headers["X-Sheet"])
    assert status == 200 and layout["frames"] == 5 and (layout["width"], layout["height"]) == (24, 16)
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    last = 4
    x, y = last % layout["columns"] * 24, last // layout["columns"] * 16
    expected = (clips["clip0"][last] * 255).round().numpy().astype(np.uint8)
    assert (sheet[y : y + 16, x : x + 24] == expected).all()
    ((status, headers, _),) = ask(get(f"votes/pairs/{pair}/references/1"))
    assert status == 200 and headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    "path", ["none?who=anna", "votes?who=", "votes/pairs/none/a", "votes/pairs/PAIR/c", "votes/pairs/PAIR/references/9"]
)
def test_what_is_not_there_is_refused(ask, folder, path):
    ((status, _, content),) = ask(get(path.replace("PAIR", next(iter(folder.read().pairs)))))
    assert status == 404 and content["error"]


@pytest.mark.parametrize("body", [{}, {"who": "anna"}, {"who": "anna", "pair": "x", "verdict": "A", "turn": "0"}])
def test_a_vote_that_is_none_is_refused(ask, folder, body):
    ((status, _, content),) = ask(post("votes/vote", body))
    assert status == 409 and content["error"] and folder.read().votes == {}


@pytest.mark.parametrize("action", ["vote", "undo"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_a_page_of_another_origin_cannot_vote(ask, folder, action, origin):
    ((status, *_),) = ask(post(f"votes/{action}", {"who": "anna"}, headers={"Origin": origin}))
    assert status == 403


@pytest.mark.parametrize("action", ["vote", "undo"])
def test_only_json_is_taken(ask, folder, action):
    ((status, *_),) = ask(("POST", f"votes/{action}", {"data": b"{}", "headers": {"Content-Type": "text/plain"}}))
    assert status == 415
