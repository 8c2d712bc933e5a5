# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""What the network leaves out or folds together changes nothing: against the plain way, on the same weights."""

import numpy as np
import pytest
import torch
from model_fixtures import SHIPPED, live_model
from segment_oracle import templates

from ocdit_ros.model import SamplerSettings, load_checkpoint
from ocdit_ros.model.backbone import Backbone
from ocdit_ros.model.embeddings import highest
from ocdit_ros.segment.network import BATCH_TOKENS, Network

trained = pytest.mark.skipif(not SHIPPED, reason="there are no trained weights in weights/")


def with_lively_norms(name, strides):
    """A backbone whose batch norms do something, as trained ones do."""
    torch.manual_seed(0)
    backbone = Backbone(name, strides)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return backbone


@pytest.mark.parametrize("name, strides", [("tf_efficientnet_lite0", (8, 16)), ("resnet18", (16,))])
def test_folded_backbone_gives_the_same_maps_without_norms(name, strides):
    backbone = with_lively_norms(name, strides)
    folded = backbone.folded()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.net.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.net.modules())  # the original is left alone
    images = torch.rand(2, 3, 96, 128)
    for own, other in zip(backbone(images), folded(images), strict=True):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-4) and float(own.std()) > 1e-3


class Halfway(torch.nn.Module):
    """Something stands between the convolution and the norm that follows it among the children."""

    def __init__(self, channels):
        super().__init__()
        self.convolution = torch.nn.Conv2d(channels, channels, 1)
        self.norm = torch.nn.BatchNorm2d(channels)
        torch.nn.init.constant_(self.norm.running_mean, 0.5)

    def forward(self, x):
        return self.norm(self.convolution(x).relu())


def test_a_network_whose_children_are_not_in_order_is_left_as_it_is():
    backbone = with_lively_norms("resnet18", (16,))
    backbone.net.act1 = Halfway(64).eval()
    assert backbone.folded() is backbone


@pytest.mark.parametrize("tokens, count", [(192, 5), (5, 5), (3, 3), (64, 1)])
def test_highest_are_those_of_a_sort(tokens, count):
    x = torch.randn(2, 3, tokens, 4, 5)
    x[:, :, ::2] = x[:, :, ::2].round()  # ties
    expected = x.sort(dim=2, descending=True).values[:, :, :count]
    with torch.no_grad():
        assert highest(x, count).equal(expected)
    assert highest(x.requires_grad_(), count).equal(expected)


def found(network, objects, seed=0, batch_tokens=0, ensemble=2):
    images = [np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8)]
    rows = [objects[:2], objects[1:]]
    return network.run(
        images, rows, [[3, 9], [9, 17]], [0, 0], 2, SamplerSettings(2, "euler", ensemble), seed, batch_tokens
    )


@pytest.fixture(scope="module")
def shipped():
    network = Network(load_checkpoint(SHIPPED[0]))
    size, count = network.config.template_size, network.config.templates
    sets = [templates(f"object {n}", size, count) for n in range(3)]
    return network, [network.onboard(s.name, s.diameter, network.featurize(s)) for s in sets]


@trained
@torch.inference_mode()
def test_masks_that_show_nothing_are_not_decoded_and_nothing_is_missed(shipped, monkeypatch):
    network, _ = shipped
    masks = torch.zeros(3, 1, 96, 128)
    masks[0, :, 40:60, 50:90] = 1
    masks[1, :, 10:14, 20:24] = 1  # the least that counts as an instance
    noise = torch.randn(3, network.config.latent_channels, 6, 8, generator=torch.Generator().manual_seed(1))
    latents = network.model.vae.encode_latent(masks) + 0.1 * noise
    decoded = []
    decode = network.model.confidence
    monkeypatch.setattr(network.model, "confidence", lambda x: decoded.append(len(x)) or decode(x))
    short = network._decode(latents[None, None], 3)[0, 0, :, 0]
    assert decoded == [2] and not short[2].any()
    whole = decode(latents)
    assert np.abs(short - whole.numpy()).max() < 0.02  # far below every threshold
    assert (short[:2].max((1, 2)) > 0.5).all()
    assert network._decode(latents[None, None, 2:], 1).shape == (1, 1, 1, 1, 96, 128) and decoded == [2]


def test_an_untrained_decoder_is_never_taken_at_its_word():
    assert Network(live_model())._empty_radius == 0.0  # it shows something anywhere


@trained
@pytest.mark.parametrize("batch_tokens", [1, 200, 10**6])
def test_the_size_of_batches_changes_rounding_only(shipped, batch_tokens):
    network, objects = shipped
    expected, other = found(network, objects), found(network, objects, batch_tokens=batch_tokens)
    assert float(np.abs(expected.confidence - other.confidence).max()) < 1e-3
    assert BATCH_TOKENS["cpu"] < BATCH_TOKENS["gpu"]


def test_boxes_are_for_the_first_object_of_their_row():
    network = Network(live_model(box_prompt=True))
    objects = [network.onboard(t.name, t.diameter, network.featurize(t)) for t in map(templates, ("a", "b"))]
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)

    def run(boxes):
        settings = SamplerSettings(1, "euler", 1)
        rows, slots = [objects, objects[::-1]], [[3, 9], [9, 3]]
        given = None if boxes is None else np.array(boxes, np.float32)
        return network.run([image], rows, slots, [0, 0], 2, settings, 0, boxes=given).confidence

    nowhere, here = [np.nan] * 4, [0.2, 0.1, 0.6, 0.7]
    without = run(None)
    np.testing.assert_array_equal(run([nowhere, nowhere]), without)
    asked = run([here, nowhere])
    np.testing.assert_array_equal(asked[1], without[1])
    assert np.abs(asked[0, :, 0] - without[0, :, 0]).max() > 1e-3
