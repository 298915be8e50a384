import torch
from torch import nn
from torch.nn import Conv3d

from trainers.policies.patches import PatchEmbedding, use_patch_products


def test_it_is_the_convolution_with_its_weights_and_names():
    convolution = Conv3d(5, 7, (1, 2, 3), (1, 2, 3))
    embedding = PatchEmbedding(convolution)
    latents = torch.randn(2, 5, 4, 6, 9)
    torch.testing.assert_close(embedding(latents), convolution(latents))
    assert embedding.state_dict().keys() == convolution.state_dict().keys()


def test_tokens_lie_one_after_the_other():
    found = PatchEmbedding(Conv3d(5, 7, (1, 2, 2), (1, 2, 2)))(torch.randn(2, 5, 3, 4, 6))
    assert found.flatten(2).transpose(1, 2).is_contiguous()


def test_both_embeddings_of_a_transformer_are_replaced():
    transformer = nn.Module()
    transformer.patch_embedding = Conv3d(1, 2, 1)
    transformer.vace_patch_embedding = Conv3d(3, 2, 1)
    use_patch_products(transformer)
    assert all(isinstance(module, PatchEmbedding) for module in transformer.children())
