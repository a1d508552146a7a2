"""The two halves of a backbone, a CNN's stages, and the files that its weights come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import build_backbone, freeze, read_efficientnet
from ovsdino.models.config import BackboneConfig, SAEConfig
from ovsdino.models.sae import StructureAwareEncoder
from ovsdino.ops.compat import unpickles_safely
from ovsdino.train.trainer import Trainer
from tests.support.cnn import CNN, JOINED, NAME, small_model_on

VIT = BackboneConfig(timm_name="small_vit", patch_size=16, embed_dim=32, depth=2, num_heads=2, taps=(0, 1))


def test_taps_of_a_cnn_are_its_stages_each_at_its_own_stride() -> None:
    backbone = build_backbone(CNN).eval()
    reference = timm.create_model(NAME, pretrained=False, num_classes=0, output_stride=16).eval()
    reference.load_state_dict(backbone.cnn.state_dict())
    image = torch.randn(2, 3, 64, 96)
    seen: dict[str, Tensor] = {}
    for stage in (1, 2, 4, 5):  # an EfficientNet's blocks 0, 1, 2, 3, 4 are the test network's stages 0 to 4
        reference.blocks[stage - 1].register_forward_hook(lambda _, __, out, s=stage: seen.update({s: out}))
    with torch.no_grad():
        final, taps = backbone.frozen(image)
        expected = reference.forward_features(image.contiguous(memory_format=torch.channels_last))
    assert torch.equal(final, expected) and final.shape == (2, 256, 4, 6)
    assert [tuple(tap.shape[1:]) for tap in taps] == [(24, 16, 24), (32, 8, 12), (48, 4, 6), (64, 4, 6)]
    assert torch.equal(taps[0], seen[2]) and torch.equal(taps[2], seen[4]) and torch.equal(taps[3], seen[5])
    assert CNN.tap_dims == (24, 32, 48, 64) and CNN.tap_strides == (4, 8, 16, 16)


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_features_in_two_halves_are_the_model_bit_for_bit(config: BackboneConfig) -> None:
    model = small_model_on(config)
    torch.nn.init.normal_(model.decoder.smd.out.weight)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        final, taps = model.backbone.frozen(image)
        whole, halves = model.encode_image(image), model.encode_features(final, taps, image)
        features, plain = model.backbone(image)
    assert torch.equal(whole.tokens, halves.tokens) and torch.equal(whole.structure.guide, halves.structure.guide)
    assert torch.equal(features, model.backbone.finish(final)) and torch.equal(features, whole.backbone)
    assert all(torch.equal(a, b) for a, b in zip(taps, plain, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (16, 16)])
def test_the_head_on_joined_maps_commutes_with_their_upsampling(size: tuple[int, int]) -> None:
    backbone = build_backbone(JOINED).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        final, taps = backbone.frozen(image)
        features, same = backbone(image)
        deep = backbone.cnn.forward_features(image)
    grid = (size[0] // 16, size[1] // 16)
    assert final.shape == (2, 256 + 48, *grid) and deep.shape[2:] == tuple(-(-side // 2) for side in grid)
    assert torch.equal(final[:, 256:], taps[2]) and torch.equal(taps[2], same[2])
    torch.testing.assert_close(features, backbone.finish(final), rtol=1e-4, atol=1e-5)


def test_the_head_is_a_linear_map_of_each_position() -> None:
    backbone = build_backbone(CNN)
    final = torch.randn(2, 256, 3, 5)
    expected = torch.einsum("dc,bchw->bdhw", backbone.head.weight, final) + backbone.head.bias[:, None, None]
    torch.testing.assert_close(backbone.finish(final), expected)
    window = final[:, :, 1:3, 2:4]
    torch.testing.assert_close(backbone.finish(window), expected[:, :, 1:3, 2:4])


def test_a_cnns_batch_norms_do_not_move_in_training() -> None:
    model = small_model_on(CNN)
    before = {key: value.clone() for key, value in model.backbone.cnn.state_dict().items()}
    image = torch.randn(4, 3, 64, 64)
    alone = model.backbone.frozen(image[:1])[0]
    model.train()
    assert model.backbone.head.training and model.decoder.training
    assert not any(module.training for module in model.backbone.cnn.modules())
    torch.testing.assert_close(model.backbone.frozen(image)[0][:1], alone)
    freeze(model.backbone.cnn)
    Trainer.train_mode(type("Run", (), {"module": model})())  # as every run sets its modes
    model.backbone(image)[0].sum().backward()
    assert all(torch.equal(before[key], value) for key, value in model.backbone.cnn.state_dict().items())
    assert model.backbone.head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.backbone.cnn.parameters())


def test_a_tap_joins_the_structure_at_its_own_resolution() -> None:
    torch.manual_seed(0)
    sae = StructureAwareEncoder(
        SAEConfig(guide_dim=16, mid_dim=24, structure_dim=32), (5, 6, 7, 8), (4, 2, 1, 1)
    ).eval()
    assert [tuple(tap.weight.shape) for tap in sae.taps] == [(16, 5), (24, 6), (32, 7), (32, 8)]
    image = torch.randn(1, 3, 128, 128)
    taps = [torch.randn(1, c, 8 * s, 8 * s) for c, s in ((5, 4), (6, 2), (7, 1), (8, 1))]
    with torch.no_grad():
        plain = sae(image, taps)
        for tap, place in zip(taps, ((17, 9), (9, 5), (5, 3), (5, 3)), strict=True):
            kept = tap[:, :, place[0], place[1]].clone()
            tap[:, :, place[0], place[1]] += 3.0
            changed = (sae(image, taps).guide - plain.guide).abs().sum((0, 1))
            tap[:, :, place[0], place[1]] = kept
            y, x = divmod(int(changed.argmax()), 32)
            scale = tap.shape[-1] // 8
            assert (abs(y - (place[0] + 0.5) * 4 / scale) <= 4, abs(x - (place[1] + 0.5) * 4 / scale) <= 4) == (
                True,
                True,
            )


def test_a_stage_finer_than_the_stem_has_no_level() -> None:
    with pytest.raises(OVSDinoError, match="a tap at 8 times the token grid has no level; expected 4, 2 or 1"):
        small_model_on(BackboneConfig(**{**vars(CNN), "taps": (0, 2)}))


def test_sides_are_multiples_of_the_stride_and_there_is_no_class_token() -> None:
    model = small_model_on(CNN)
    assert model.stride_multiple == 16
    with pytest.raises(ValueError, match=r"multiples of 16, got \(1, 3, 64, 72\)"):
        model.encode_image(torch.zeros(1, 3, 64, 72))
    with pytest.raises(OVSDinoError, match=r"test_efficientnet.* has no class token: background cleaning needs one"):
        model.encode_with_attention(torch.zeros(1, 3, 64, 64))
    model.backbone.fix_size(64, 64)
    assert model.backbone(torch.zeros(1, 3, 32, 96))[0].shape == (1, 32, 2, 6)


def test_stages_that_timm_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="has stages of"):
        build_backbone(BackboneConfig(**{**vars(CNN), "stage_dims": (16, 24, 32, 48, 65)}))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """The weights of a network with its classifier, moved away from where they start."""
    torch.manual_seed(1)
    state = timm.create_model(NAME, pretrained=False).state_dict()
    return {k: v + torch.rand_like(v) if v.is_floating_point() else v + 7 for k, v in state.items()}


def ported(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return it as another port names it: other names, the same last words, the same order."""
    return {f"_part{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())}


@pytest.mark.skipif(not unpickles_safely(), reason="this torch reads no pickled weights")
@pytest.mark.parametrize(
    "form", ["timm", "timm inside", "timm without classifier", "ported", "ported without counters"]
)
def test_every_published_form_of_the_weights_loads(trained: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    path = tmp_path / "file.pth"
    if form == "timm":
        path = tmp_path / "model.safetensors"
        save_file(trained, path)
    elif form == "timm inside":
        torch.save({"state_dict": {f"module.{k}": v for k, v in trained.items()}, "epoch": 3}, path)
    elif form == "timm without classifier":
        torch.save({k: v for k, v in trained.items() if not k.startswith("classifier.")}, path)
    else:
        kept = {k: v for k, v in trained.items() if "counters" not in form or not k.endswith("num_batches_tracked")}
        torch.save(ported(kept), path)
    backbone = build_backbone(CNN)
    backbone.load(path)
    own = backbone.cnn.state_dict()
    assert all(torch.equal(own[k], trained[k]) for k in own if not k.endswith("num_batches_tracked"))
    assert ("classifier.weight" in read_efficientnet(path, NAME)) == ("without classifier" not in form)


def reordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swap a mean and a variance: shapes agree, kinds do not."""
    keys = [*state]
    i = next(i for i, key in enumerate(keys) if key.endswith("running_mean"))
    keys[i], keys[i + 1] = keys[i + 1], keys[i]
    return {key: state[key] for key in keys}


@pytest.mark.skipif(not unpickles_safely(), reason="this torch reads no pickled weights")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: ported({k: v for k, v in s.items() if k != "bn2.bias"}), r"\(.* tensors, .* has .*'bn2\.bias'\)"),
        (lambda s: reordered(ported(s)), r"in the place of 'bn1\.running_mean'"),
        (lambda s: {"weight": torch.zeros(3)}, r"not the weights of test_efficientnet"),
        (lambda s: {k: v for k, v in s.items() if k != "bn2.bias"}, r"1 keys missing, 0 unknown, e\.g\. 'bn2\.bias'"),
        (lambda s: {**s, "extra": torch.zeros(1)}, r"1 unknown, e\.g\. 'extra'"),
        (
            lambda s: {**s, "conv_head.weight": torch.zeros(3)},
            r"conv_head\.weight is \(3,\), expected \(256, 64, 1, 1\)",
        ),
        (lambda s: {**s, "bn2.bias": s["bn2.bias"] * float("nan")}, r"bn2\.bias holds NaN"),
    ],
)
def test_another_networks_file_is_one_clear_line(
    trained: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    torch.save(change(trained), tmp_path / "file.pth")
    with pytest.raises(OVSDinoError, match=rf"file\.pth.*{message}") as caught:
        build_backbone(CNN).load(tmp_path / "file.pth")
    assert "\n" not in str(caught.value)
