"""A user's own networks, by stand-ins: small ONNX graphs with the interfaces of SCRFD and ArcFace, made here.

They show that the files are read, fed and decoded as their interfaces say; how well real ones recognise, they do not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.cli import main
from trainers.errors import UserError
from trainers.faces.detect import detect
from trainers.faces.embed import embed
from trainers.faces.report import find_people, report
from trainers.faces.users import load_recogniser

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def saved(path, nodes, inputs, outputs, constants=()):
    graph = onnx.helper.make_graph(
        nodes,
        "stand-in",
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in inputs],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def embedder(path, batch="n", side=112):
    """49 mean colours of a face, less their mean: enough to tell three portraits apart."""
    node = onnx.helper.make_node
    nodes = [
        node("AveragePool", ["x"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Flatten", ["pooled"], ["flat"]),
        node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["flat", "mean"], ["y"]),
    ]
    return saved(path, nodes, [("x", [batch, 3, side, side])], [("y", [batch, 147])])


def detector(path, x0: float, y0: float, x1: float, y1: float):
    """Always one face at these pixels of the 640x640 input, from the middle place of the 16 pixel grid."""
    constants, nodes, outputs = [], [], []
    for stride in (8, 16, 32):
        cells = 640 // stride
        scores = np.zeros((cells**2 * 2, 1), np.float32)
        boxes = np.zeros((cells**2 * 2, 4), np.float32)
        if stride == 16:
            place = (20 * cells + 10) * 2
            scores[place] = 0.9
            boxes[place] = np.array([160 - x0, 320 - y0, x1 - 160, y1 - 320]) / stride
        for name, array in ((f"s{stride}", scores), (f"b{stride}", boxes)):
            constants.append((f"{name}c", array))
            nodes.append(onnx.helper.make_node("Add", [f"{name}c", "zero"], [name]))
            outputs.append((name, list(array.shape)))
    first = [
        onnx.helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "none"], ["zero"]),
    ]
    constants.append(("none", np.float32(0)))
    outputs = [*outputs[::2], *outputs[1::2]]
    return saved(path, [*first, *nodes], [("x", [1, 3, "h", "w"])], outputs, constants)


def test_an_embedder_gets_upright_faces_of_112_pixels_and_its_vectors_are_compared(tmp_path, portraits, scene):
    recogniser = load_recogniser(None, embedder(tmp_path / "arcface.onnx"))
    people = find_people([portraits["collins"], portraits["obama"]], recogniser=recogniser)
    assert people.embeddings.shape == (2, 147)
    torch.testing.assert_close(people.embeddings.norm(dim=1), torch.full((2,), 0.5))
    frame = torch.from_numpy(scene(("obama", 30, 40, 150), ("collins", 240, 40, 150)))[None]
    found = report(frame, people)
    assert found.headline == pytest.approx(1.0, abs=0.01) and [p.seen for p in found.people] == [1.0, 1.0]


def test_a_file_for_single_faces_gives_the_same_numbers(tmp_path, portraits):
    picture = torch.from_numpy(portraits["obama"])[None].expand(3, -1, -1, -1)
    many, one = (load_recogniser(None, embedder(tmp_path / f"{b}.onnx", b)) for b in ("n", 1))
    faces = detect(picture, recogniser=many)
    torch.testing.assert_close(embed(faces, many.embedder), embed(faces, one.embedder))


def test_without_faces_there_are_no_vectors(tmp_path):
    recogniser = load_recogniser(None, embedder(tmp_path / "arcface.onnx"))
    faces = detect(torch.full((1, 64, 96, 3), 127, dtype=torch.uint8), recogniser=recogniser)
    assert embed(faces, recogniser.embedder).shape == (0, 147)


def test_the_boxes_of_a_detector_are_decoded_to_pixels_of_the_frame(tmp_path, portraits):
    """A frame of 320 pixels is shown to it at twice the size."""
    recogniser = load_recogniser(detector(tmp_path / "scrfd.onnx", 100, 260, 240, 400), None)
    faces = detect(torch.zeros(2, 320, 320, 3, dtype=torch.uint8), recogniser=recogniser)
    assert faces.frame.tolist() == [0, 1] and faces.confidence.tolist() == pytest.approx([0.9, 0.9])
    torch.testing.assert_close(faces.box, torch.tensor([[50.0, 130.0, 120.0, 200.0]]).expand(2, -1))


@pytest.mark.parametrize("which", ["detector", "embedder"])
def test_a_file_that_is_no_model_is_refused(tmp_path, which):
    (tmp_path / "face.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=rf"cannot be read as an ONNX model .*; give a face {which}"):
        load_recogniser(**{"detector": None, "embedder": None, which: tmp_path / "face.onnx"})
    with pytest.raises(UserError, match="there is no file"):
        load_recogniser(**{"detector": None, "embedder": None, which: tmp_path / "nothing.onnx"})


def test_models_of_another_kind_are_refused(tmp_path):
    arcface = embedder(tmp_path / "arcface.onnx")
    with pytest.raises(UserError, match="is not a face detector"):
        load_recogniser(arcface, None)
    with pytest.raises(UserError, match=r"takes \[\['n', 3, 96, 96\]\], which is not a face embedder"):
        load_recogniser(None, embedder(tmp_path / "small.onnx", side=96))


def test_the_command_uses_it_and_names_its_licence(tmp_path, capsys):
    from .conftest import PICTURES

    portrait = str(PICTURES / "obama.jpg")
    model = str(embedder(tmp_path / "arcface.onnx"))
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "0.jpg").write_bytes((PICTURES / "obama.jpg").read_bytes())
    assert main(["faces", str(folder), "--embedder", model, "--references", portrait]) == 0
    text = capsys.readouterr().out
    assert "arcface.onnx: not part of this pack. InsightFace's models are for non-commercial use only" in text
    assert "faces 1.00" in text
