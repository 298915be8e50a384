"""Several rewards for a run, and the networks that look at faces."""

from __future__ import annotations

import pytest

from trainers.config import make_config


@pytest.fixture(scope="module")
def reward(run_node):
    return run_node("IdentityGRPOLoadReward")[0]


@pytest.fixture
def network(pack):
    """A name of models/insightface, with a file that is no model."""
    import folder_paths

    path = pack_file(folder_paths.models_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no model")
    yield "models/other/arcface.onnx"
    path.unlink()


def pack_file(models: str):
    from pathlib import Path

    return Path(models) / "insightface" / "models" / "other" / "arcface.onnx"


def test_the_weights_reach_the_run_s_configuration(run_node, reward):
    (several,) = run_node("IdentityGRPOCombineRewards", reward=reward, identity=0.0, motion=0.5, copy_paste=0.25)
    assert several.config is reward.config and several.model is reward.model
    rewards = make_config("fast", {"prompts": "people.csv", **several.run_settings}).rewards
    assert rewards.weights == {"identity": 0.0, "faces": 0.0, "motion": 0.5, "copy_paste": 0.25, "alignment": 0.0}


def test_the_node_before_train_changes_nothing_else(reward):
    assert reward.run_settings == {}


def test_no_weight_at_all_is_refused(run_node, reward):
    with pytest.raises(ValueError, match="every weight is 0"):
        run_node("IdentityGRPOCombineRewards", reward=reward, identity=0.0, motion=0.0)


def test_faces_are_no_reward_where_the_same_embedder_judges(run_node, reward):
    with pytest.raises(ValueError, match="would train on the face embedder that judges"):
        run_node("IdentityGRPOCombineRewards", reward=reward, faces=1.0)


def test_alignment_without_a_clip_model_is_refused(run_node, reward):
    with pytest.raises(ValueError, match="there is no CLIP model `none`"):
        run_node("IdentityGRPOCombineRewards", reward=reward, alignment=1.0)


def test_without_files_the_networks_are_those_of_the_pack(run_node):
    (files,) = run_node("IdentityGRPOLoadFaceNetworks")
    assert (files.detector, files.embedder) == (None, None)


def test_a_file_of_models_insightface_is_offered_and_read(pack, run_node, network):
    with pytest.raises(ValueError, match="cannot be read as an ONNX model|onnxruntime is not installed"):
        run_node("IdentityGRPOLoadFaceNetworks", embedder=network)


def test_a_path_out_of_the_folder_is_refused(pack):
    node = pack.nodes["IdentityGRPOLoadFaceNetworks"]
    with pytest.raises(ValueError, match=r"there is no file `\.\./secret.onnx`"):
        node.execute(detector="built in", embedder="../secret.onnx")
