"""Memory is counted before it is used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import nn

from wsi_ats.errors import ModelError
from wsi_ats.nn import memory
from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.memory import free_bytes, peak_bytes
from wsi_ats.nn.network import ImageClassifier


class Floats(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image):
        return self.layers(image.float())


def test_memory_counts_activations_kept_for_the_backward_pass():
    network = Floats(nn.Linear(100, 50, bias=False), nn.Sigmoid(), nn.Linear(50, 2, bias=False))
    image, floats, hidden, logits = 100, 400, 200, 8
    # When scoring, a layer's input and output; the caller holds image and floats.
    assert peak_bytes(network, [100], training=False) == image + floats + 2 * hidden
    # When training, in the end, all gradients beside the first layer's input.
    weights = 4 * (100 * 50 + 50 * 2)
    needed = peak_bytes(network, [100], training=True)
    assert needed >= image + floats + weights
    assert needed <= image + floats + 4 * hidden + 8 * logits + weights


def test_frozen_weights_need_no_activations():
    network = Floats(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2))
    all_learn = peak_bytes(network, [64, 1000], training=True)
    network.layers[0].requires_grad_(False)
    assert peak_bytes(network, [64, 1000], training=True) < all_learn / 4


@pytest.mark.parametrize("training", [False, True])
def test_memory_grows_with_the_image_and_neither_weights_nor_gradients_are_touched(training):
    network = ImageClassifier(build_encoder("test_resnet", pretrained=False), classes=2)
    small, large = (peak_bytes(network, (side, side, 3), training=training) for side in (512, 1024))
    assert 3.5 < large / small < 4.5
    assert all(weight.grad is None and weight.device.type == "cpu" for weight in network.parameters())


def test_the_count_is_what_the_same_network_takes_on_the_cpu():
    """The same account, kept of real tensors."""
    network = ImageClassifier(build_encoder("test_resnet", pretrained=False), classes=2)
    with memory._Ledger(network.state_dict().values()) as ledger, torch.inference_mode():
        network(torch.zeros(96, 64, 3, dtype=torch.uint8))
    assert ledger.peak == pytest.approx(peak_bytes(network, (96, 64, 3), training=False), rel=0.01)


def test_another_thread_may_compute_with_the_network_meanwhile():
    counting, computed = Event(), Event()

    class Network(Floats):
        def forward(self, image):
            if image.is_meta:
                counting.set()
                computed.wait(600)
            return super().forward(image)

    network = Network(nn.Linear(4, 2))
    with ThreadPoolExecutor(1) as pool:
        count = pool.submit(peak_bytes, network, [4], training=False)
        assert counting.wait(600)
        try:
            assert not network(torch.ones(4, dtype=torch.uint8)).is_meta
        finally:
            computed.set()
        assert count.result(600) > 0
    assert not any(weight.is_meta for weight in network.parameters())


def test_a_network_for_one_size_of_image_is_an_error_with_advice():
    network = ImageClassifier(build_encoder("vit_tiny_patch16_224", pretrained=False), classes=2)
    with pytest.raises(ModelError, match=r"cannot take an input of \(64, 96, 3\).*another backbone"):
        peak_bytes(network, (64, 96, 3), training=False)


def test_available_memory_is_positive():
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50
