"""Whose requests the pack's routes answer."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest


@pytest.fixture
def problem(pack, monkeypatch):
    """`problem(headers, address)`: why a request to that address of this computer is refused."""
    module = import_module("identity_grpo.nodes.origins")
    monkeypatch.setattr(module.socket, "gethostname", lambda: "Studio")

    def ask(headers: dict, address: str = "127.0.0.1") -> str | None:
        transport = SimpleNamespace(get_extra_info=lambda name: (address, 8188))
        return module.origin_problem(SimpleNamespace(headers=headers, transport=transport))

    return ask


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8188", "localhost:8188", "LOCALHOST", "[::1]:8188", "127.8.8.8", "comfy.localhost:8188", "studio:8188"],
)
def test_the_names_of_this_computer_are_answered(problem, host):
    assert problem({"Host": host}) is None
    assert problem({"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8188",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.1.5:8188",
        "0.0.0.0",
        "",
        "[",
        "a b",
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_page_whose_name_was_made_to_resolve_to_this_computer_is_refused(problem, host, address):
    assert "is not this computer's" in problem({"Host": host}, address)
    assert "is not this computer's" in problem({"Host": host, "Origin": f"http://{host}"}, address)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "file://", "http://["])
def test_a_page_of_another_origin_is_refused(problem, origin):
    assert "comes from a page of" in problem({"Host": "127.0.0.1:8188", "Origin": origin})


def test_a_request_that_the_browser_calls_cross_site_is_refused_on_any_address(problem):
    for address in ("127.0.0.1", "192.168.1.5"):
        assert "another site" in problem({"Host": "192.168.1.5:8188", "Sec-Fetch-Site": "cross-site"}, address)


def test_a_server_on_a_network_answers_to_any_name(problem):
    assert problem({"Host": "studio.example:8188", "Origin": "http://studio.example:8188"}, "192.168.1.5") is None


def test_nothing_is_refused_where_the_user_admits_other_origins(problem, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "enable_cors_header", "*")
    assert problem({"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}) is None


def test_a_program_without_a_host_header_is_answered(problem):
    assert problem({}) is None
