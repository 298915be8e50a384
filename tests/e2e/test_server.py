"""What ComfyUI itself says of the pack."""

from __future__ import annotations

import re

PREFIX = "IdentityGRPO"


def test_the_pack_is_imported_without_a_complaint(comfyui):
    assert re.search(r"seconds: .*identity-grpo", comfyui.log), comfyui.log[-3000:]
    assert "IMPORT FAILED" not in comfyui.log
    assert not re.search(r"(warning|error|exception|traceback).*identity.grpo", comfyui.log, re.IGNORECASE)


def test_every_node_is_offered(object_info, node_ids):
    assert {name for name in object_info if name.startswith(PREFIX)} == set(node_ids)


def test_every_help_page_is_served(comfyui, node_ids):
    pages = {i: comfyui.text(f"/extensions/identity-grpo/docs/{i}.md") for i in node_ids}
    assert not [i for i, page in pages.items() if len(page) < 200]
