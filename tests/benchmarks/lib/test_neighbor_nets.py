"""The networks that nano is timed against."""

from __future__ import annotations

import pytest
import torch

from ovsdino.benchmarks.lib.neighbor_nets import clipseg, lr_aspp


def test_lr_aspp_labels_every_pixel() -> None:
    pytest.importorskip("torchvision")
    net = lr_aspp(64)
    with torch.inference_mode():
        labels = net.finish(net.network(net.prepared(torch.zeros(64, 64, 3, dtype=torch.uint8))))
    assert labels.shape == (64, 64) and int(labels.max()) < 21 and not net.network.training
    assert net.parameters == 3_221_538  # as torchvision's documentation has it


def test_clipseg_has_a_map_for_each_word() -> None:
    pytest.importorskip("transformers")
    net = clipseg(32, 3)
    with torch.inference_mode():
        out = net.network(net.prepared(torch.zeros(32, 32, 3, dtype=torch.uint8)))
    assert out[0].shape == (3, 32, 32) and net.finish(out).shape == (32, 32)
