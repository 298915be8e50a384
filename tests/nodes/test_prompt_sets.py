"""Prompt sets as nodes: rows from a CSV of the input folder, rows made in the graph, and what is refused when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TRAINING, HELD_OUT = "TinyWorld: training (built in)", "TinyWorld: held out (built in)"


@pytest.fixture
def folder(pack, tmp_path) -> Path:
    """A fresh folder within ComfyUI's input folder, with three pictures."""
    import folder_paths

    place = Path(folder_paths.get_input_directory()) / tmp_path.name
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("ann", (20, 16)), ("bob", (20, 16)), ("wide", (10, 30))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(place / f"{name}.png")
    return place


def csv(folder: Path, *rows: str) -> str:
    """The choice for a CSV of these rows."""
    (folder / "people.csv").write_text("\n".join(["ref_paths,prompt", *rows]), encoding="utf-8")
    return f"{folder.name}/people.csv"


def test_a_csv_of_the_input_folder_is_loaded_and_one_row_is_output(run_node, folder):
    choice = csv(folder, "ann.png,a wave", "ann.png;bob.png,two dance")
    found, pictures, prompt, negative, count = run_node("IdentityGRPOPromptSet", file=choice, item=2)
    assert [item.prompt for item in found] == ["a wave", "two dance"]
    assert (prompt, negative, count) == ("two dance", "", 2)
    assert pictures.shape == (2, 20, 16, 3)
    assert torch.equal((pictures[1] * 255).round().byte(), torch.from_numpy(np.array(Image.open(folder / "bob.png"))))


def test_pictures_of_other_sizes_are_fitted_on_white(run_node, folder):
    _, pictures, *_ = run_node("IdentityGRPOPromptSet", file=csv(folder, "ann.png;wide.png,two dance"), item=1)
    assert pictures.shape == (2, 20, 16, 3)
    assert pictures[1, 0].eq(1).all() and not pictures[1, 10].eq(1).all()


def test_a_built_in_set_trains_as_tinyworld(run_node):
    found, pictures, prompt, *_ = run_node("IdentityGRPOPromptSet", file=HELD_OUT, item=2)
    assert found.source == "tinyworld"
    assert len(pictures) == len(found[1].references) and prompt == found[1].prompt


def test_the_two_built_in_sets_share_no_item(run_node):
    train, held_out = (run_node("IdentityGRPOPromptSet", file=name)[0] for name in (TRAINING, HELD_OUT))
    assert not {item.content() for item in train} & {item.content() for item in held_out}


@pytest.mark.parametrize(
    "row, message",
    [
        ("gone.png,a wave", "row 3.*gone.png is missing"),
        ("ann.png,", "row 3.*prompt is empty"),
        (",a wave", "row 3.*ref_paths is empty"),
        ("ann.png,a,b", "row 3 has 3 fields|row 3: has 3 fields"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number_before_anything_runs(run_node, pack, folder, row, message):
    with pytest.raises(pack.Refused, match=message):
        run_node("IdentityGRPOPromptSet", file=csv(folder, "ann.png,a wave", row))


def test_a_file_that_is_no_picture_is_refused_before_anything_runs(run_node, pack, folder):
    (folder / "bob.png").write_bytes(b"no picture")
    with pytest.raises(pack.Refused, match="row 2.*bob.png cannot be read"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, "bob.png,a wave"))


def test_a_truncated_picture_is_an_error_of_the_run(run_node, pack, folder):
    """Finding it takes decoding, for which the server has no time when a graph is queued."""
    data = (folder / "bob.png").read_bytes()
    (folder / "bob.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="row 2.*bob.png cannot be read") as caught:
        run_node("IdentityGRPOPromptSet", file=csv(folder, "bob.png,a wave"))
    assert not isinstance(caught.value, pack.Refused)


@pytest.fixture
def decoded(pack, monkeypatch) -> list[str]:
    """A list that grows by the name of every picture that is decoded to be checked."""
    from identity_grpo.trainers import prompts

    names: list[str] = []
    check = prompts._picture_problem
    monkeypatch.setattr(prompts, "_picture_problem", lambda path: names.append(path.name) or check(path))
    return names


def test_a_queue_decodes_each_picture_once_and_the_next_none(run_node, folder, decoded):
    choice = csv(folder, "ann.png;bob.png,two dance", "bob.png;wide.png,two wave")
    for _ in range(2):
        run_node("IdentityGRPOPromptSet", file=choice)
    assert sorted(decoded) == ["ann.png", "bob.png", "wide.png"]


def test_validation_and_fingerprint_decode_nothing(pack, folder, decoded, monkeypatch):
    node, choice = pack.nodes["IdentityGRPOPromptSet"], csv(folder, "ann.png,a wave")
    monkeypatch.setattr(Image, "open", None)
    assert node.validate_inputs(file=choice) is True
    assert "ann.png" in node.fingerprint_inputs(file=choice)
    assert decoded == []


def test_a_set_that_is_deleted_after_validation_is_an_error_of_the_run(pack, folder):
    node, choice = pack.nodes["IdentityGRPOPromptSet"], csv(folder, "ann.png,a wave")
    before = node.fingerprint_inputs(file=choice, item=1)
    (folder / "ann.png").unlink()
    assert node.fingerprint_inputs(file=choice, item=1) != before
    with pytest.raises(ValueError, match="ann.png is missing"):
        node.execute(file=choice, item=1)


@pytest.mark.parametrize("cell", ["~nobody-here/a.png", "x" * 5000, "~"])
def test_a_reference_that_is_no_path_is_refused_in_its_row(run_node, pack, folder, cell):
    with pytest.raises(pack.Refused, match="row 2: reference image"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, f"{cell},a wave"))


def test_links_in_a_circle_are_refused(run_node, pack, folder):
    (folder / "one.png").symlink_to(folder / "two.png")
    (folder / "two.png").symlink_to(folder / "one.png")
    with pytest.raises(pack.Refused, match="row 2: reference image"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, "one.png,a wave"))


def test_a_phone_picture_is_output_upright(run_node, folder):
    pixels = np.zeros((20, 16, 3), np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(folder / "phone.png", exif=exif)
    _, pictures, *_ = run_node("IdentityGRPOPromptSet", file=csv(folder, "phone.png,a wave"))
    assert torch.equal((pictures[0] * 255).byte(), torch.from_numpy(pixels))


def test_a_picture_outside_of_comfyuis_folders_is_refused(run_node, pack, folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(pack.Refused, match="is outside of ComfyUI's input and output folders"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, f"{tmp_path / 'secret.png'},a wave"))


def test_whether_a_file_outside_exists_is_not_revealed(run_node, pack, folder, tmp_path):
    with pytest.raises(pack.Refused, match="row 2.*outside of ComfyUI's"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, f"{tmp_path / 'nothing.png'},a wave"))


def test_a_row_of_many_references_is_shown(run_node, folder):
    row = ";".join(["wide.png"] * 9)
    assert len(run_node("IdentityGRPOPromptSet", file=csv(folder, f"{row},nine dance"))[1]) == 9


def test_a_csv_outside_of_the_input_folder_is_refused(run_node, pack, folder, tmp_path):
    (tmp_path / "other.csv").write_text("ref_paths,prompt\n", encoding="utf-8")
    with pytest.raises(pack.Refused):
        run_node("IdentityGRPOPromptSet", file=str(tmp_path / "other.csv"))


@pytest.mark.parametrize("item", [2, 0, -1])
def test_a_row_that_does_not_exist_is_an_error(run_node, pack, folder, item):
    with pytest.raises(ValueError, match="has 1 row; choose 1"):
        run_node("IdentityGRPOPromptSet", file=csv(folder, "ann.png,a wave"), item=pack.Linked(item))


def test_a_changed_picture_is_seen_at_the_next_queue(pack, folder):
    node, choice = pack.nodes["IdentityGRPOPromptSet"], csv(folder, "ann.png,a wave")
    before = node.fingerprint_inputs(file=choice, item=1)
    Image.new("RGB", (64, 64)).save(folder / "ann.png")
    assert node.fingerprint_inputs(file=choice, item=1) != before


def test_the_set_is_shown(node_output, folder):
    assert node_output("IdentityGRPOPromptSet", file=csv(folder, "ann.png,a wave"), item=1).ui.as_dict()["images"]


def test_rows_made_in_the_graph_are_chained(run_node):
    picture = torch.rand(1, 12, 12, 3)
    (first,) = run_node("IdentityGRPOPromptItem", references={"ref0": picture}, prompt="a wave")
    (both,) = run_node(
        "IdentityGRPOPromptItem", references={"ref0": picture, "ref1": picture}, prompt="two dance", prompt_set=first
    )
    assert [(item.id, len(item.references)) for item in both] == [("item-1", 1), ("item-2", 2)]
    assert len(first) == 1


def test_a_prompt_that_comes_empty_through_a_link_is_refused(run_node, pack):
    with pytest.raises(ValueError, match="prompt is empty"):
        run_node("IdentityGRPOPromptItem", references={"ref0": torch.rand(1, 12, 12, 3)}, prompt=pack.Linked(" "))


def test_a_row_without_a_prompt_is_refused(run_node, pack):
    with pytest.raises(pack.Refused, match="prompt is empty"):
        run_node("IdentityGRPOPromptItem", references={"ref0": torch.rand(1, 12, 12, 3)}, prompt=" ")


def test_half_an_emoji_is_removed_from_a_row(run_node):
    (prompts,) = run_node(
        "IdentityGRPOPromptItem",
        references={"ref0": torch.rand(1, 12, 12, 3)},
        prompt=" a wave \ud83d",
        negative="\ude00",
    )
    assert (prompts[0].prompt, prompts[0].negative) == ("a wave", "")
    assert len(prompts.digest) == 64


@pytest.mark.parametrize("prompt", ["", " \n", "\ud83d"])
def test_csv_and_node_refuse_an_empty_prompt_with_the_same_sentence(run_node, pack, folder, prompt):
    with pytest.raises(pack.Refused) as of_node:
        run_node("IdentityGRPOPromptItem", references={"ref0": torch.rand(1, 12, 12, 3)}, prompt=prompt)
    with pytest.raises(pack.Refused) as of_csv:
        run_node("IdentityGRPOPromptSet", file=csv(folder, "ann.png,"))
    assert [name for name, _ in of_node.value.problems] == ["prompt"]
    (sentence,) = (text for _, text in of_node.value.problems)
    assert f"row 2: {sentence}" in str(of_csv.value)


# --- made of portraits and scenes ------------------------------------------------------------------------------------

MAKE = "IdentityGRPOMakePromptSet"


@pytest.fixture
def portraits(folder) -> str:
    """The choice for a folder with a picture of each of six people."""
    (folder / "people").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / "people" / f"p{number}.png")
    return f"{folder.name}/people"


def test_a_folder_of_portraits_and_the_scenes_of_the_pack_make_both_sets(run_node, portraits):
    train, evaluation = run_node(MAKE, portraits=portraits, rows=20, held_out=4, check_faces=False)
    assert (len(train), len(evaluation)) == (20, 4)
    people = [{reference.name for item in items for reference in item.references} for items in (train, evaluation)]
    assert people[0].isdisjoint(people[1]) and len(people[0] | people[1]) == 6
    assert all("a person and a person" in item.prompt.lower() for item in train)


def test_more_rows_than_there_are_become_as_many_as_there_are(run_node, portraits, folder):
    (folder / "scenes.txt").write_text("\n".join(f"{{people}} wave {n} times." for n in range(5)))
    scenes = f"{folder.name}/scenes.txt"
    train, evaluation = run_node(MAKE, portraits=portraits, scenes=scenes, rows=500, check_faces=False)
    assert (len(train), len(evaluation)) == (6 * 4, 1)


def test_portraits_without_a_face_are_refused_unless_the_check_is_off(run_node, pack, portraits):
    with pytest.raises(pack.UserError, match="6 portraits cannot be used"):
        run_node(MAKE, portraits=portraits)


def test_folders_without_pictures_are_not_offered(portraits, folder):
    """ComfyUI makes an empty `input/3d`, which a new node would choose."""
    from identity_grpo.nodes import folders

    (folder / "3d" / "models").mkdir(parents=True)
    (folder / "3d" / "models" / "car.glb").touch()
    offered = folders.portrait_choices()
    assert {folder.name, portraits} <= set(offered)
    assert not {f"{folder.name}/3d", f"{folder.name}/3d/models"} & set(offered)


def test_portraits_outside_of_the_input_folder_are_refused(run_node, pack, portraits):
    with pytest.raises(pack.UserError, match="there is no folder `../secret`"):
        run_node(MAKE, portraits=pack.Linked("../secret"))
