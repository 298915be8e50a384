"""ComfyUI's own log and routes, with the pack."""

from __future__ import annotations

import re

PREFIX = "IdentityGRPO"


def test_the_pack_is_imported_without_a_complaint(comfyui):
    start, up, _ = comfyui.log.partition("To see the GUI")
    assert up and re.search(r"seconds: .*identity-grpo", start), start[-3000:]
    assert not re.search(r"IMPORT FAILED|(warning|error|exception|traceback).*identity.grpo", start, re.IGNORECASE)


def test_every_node_is_offered(object_info, node_ids):
    assert {name for name in object_info if name.startswith(PREFIX)} == set(node_ids)


def test_every_help_page_is_served(comfyui, node_ids):
    pages = {i: comfyui.text(f"/extensions/identity-grpo/docs/{i}.md") for i in node_ids}
    assert not [i for i, page in pages.items() if len(page) < 200]
