"""SAM's embedding under a crop, from a folder and on the fly, and training towards it."""

import numpy as np
import pytest
import torch

from ovsdino.cli import main
from ovsdino.data.masks import MaskStore
from ovsdino.errors import OVSDinoError
from ovsdino.io.tree import ImageSource
from ovsdino.models.sam import SAMEncoder
from ovsdino.train.masks.embeddings import SamOnTheFly, SamTargets, crop_embedding, filled_cells, write_embeddings
from tests.support.weak_folder import make_folder, trainer, write_config


def ramp(image=None):
    """(256, 64, 64): channel 0 is the column's center, channel 1 the row's."""
    center = torch.arange(64) + 0.5
    found = torch.zeros(256, 64, 64)
    found[0], found[1] = center, center[:, None]
    return found


def test_an_image_fills_the_square_along_its_longer_side():
    assert filled_cells(480, 640, 64) == (48, 64)
    assert filled_cells(1000, 500, 64) == (64, 32)
    assert filled_cells(301, 640, 64) == (482 / 16, 64)  # 481.6 pixels become 482


def test_a_crop_finds_its_own_part():
    # 640 x 480 fills 64 columns and 48 rows. The crop spans columns 16..48 and rows 12..36; in a 3 x 4 grid a cell is 8
    # by 8, so the centers lie at 20, 28, 36, 44 and 16, 24, 32.
    place = torch.tensor([0.25, 0.25, 0.75, 0.75, 0.0])
    part = crop_embedding(ramp(), filled_cells(480, 640, 64), place, (3, 4))
    assert part.shape == (256, 3, 4) and part.dtype == torch.float32
    torch.testing.assert_close(part[0], torch.tensor([20.0, 28, 36, 44]).expand(3, 4))
    torch.testing.assert_close(part[1], torch.tensor([16.0, 24, 32])[:, None].expand(3, 4))
    mirrored = crop_embedding(ramp(), filled_cells(480, 640, 64), place + torch.tensor([0, 0, 0, 0, 1.0]), (3, 4))
    assert torch.equal(mirrored, part.flip(-1))


def test_the_padding_is_never_seen():
    embedding = torch.ones(256, 64, 64)
    embedding[:, 48:] = 1e6
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(crop_embedding(embedding, (48, 64), whole, (5, 7)), torch.ones(256, 5, 7))


@pytest.fixture
def folder(tmp_path):
    """`make_folder`'s six pictures, 64 x 64, with ramps for embeddings."""
    root = make_folder(tmp_path / "data")
    store = MaskStore.open(root / "masks")
    write_embeddings(ImageSource(root), store, ramp)
    return root


def test_written_embeddings_come_back_and_are_not_made_again(folder):
    targets = SamTargets(folder / "masks")
    embedding, filled = targets.embedding("images/3.png")
    assert torch.equal(embedding, ramp().half()) and filled == (64, 64)
    places = torch.tensor([[0.0, 0.0, 0.5, 1.0, 0.0], [0.5, 0.0, 1.0, 1.0, 0.0]])
    found = targets.crops(["images/0.png", "images/5.png"], places, (2, 2))
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([[8.0, 24.0], [40.0, 56.0]]))
    write_embeddings(ImageSource(folder), MaskStore.open(folder / "masks"), embed=None)  # nothing is left to embed
    with pytest.raises(OVSDinoError, match="no SAM embedding of 'x'"):
        targets.embedding("x")


def test_faults_of_a_folder_are_one_line(folder, tmp_path):
    with pytest.raises(OVSDinoError, match="no SAM embeddings here"):
        SamTargets(tmp_path / "none")
    path = folder / "masks/embeddings-00000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OVSDinoError, match="not SAM's embeddings, or damaged"):
        SamTargets(folder / "masks")


@pytest.mark.parametrize("bf16", [False, True])
def test_on_the_fly_is_the_encoder_on_the_whole_image(bf16):
    class Encoder(SAMEncoder):
        """SAM's preprocessing; the embedding is each cell's mean of the prepared image."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.img_size = 1024
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.register_buffer("std", torch.ones(3, 1, 1))
            self.encoder = self

        def forward_features(self, x):
            mean = torch.nn.functional.avg_pool2d(x, 16)
            kinds.append(torch.nn.functional.conv2d(mean, torch.ones(1, 3, 1, 1)).dtype)
            return mean

    kinds = []
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 32:] = 200
    source = SamOnTheFly(Encoder(), {"a": image}.__getitem__, bf16=bf16)
    embedding, filled = source.embedding("a")
    assert embedding.shape == (3, 64, 64) and filled == (32, 64) and not embedding[:, 32:].any()
    found = source.crops(["a"], torch.tensor([[0.5, 0.0, 1.0, 1.0, 0.0]]), (1, 2))
    torch.testing.assert_close(found[0, 0], torch.full((1, 2), 200.0), atol=5, rtol=0)  # the edge is scaled up softly
    assert set(kinds) == {torch.bfloat16 if bf16 else torch.float32} and found.dtype == torch.float32


def test_a_step_learns_towards_sam(folder, tmp_path):
    changes = {"loss": {"sam": 1.0}, "data": {"sam_targets": str(folder / "masks"), "height": 32, "width": 48}}
    it = trainer(write_config(folder, tmp_path / "run", **changes))
    first = it.train_step(next(iter(it.batches(0, 1))))
    assert 0 < first["sam"] < 100
    assert it.objective.alignment.project.weight.grad.abs().max() > 0


@pytest.mark.parametrize("overrides", [["loss.sam=1.0"], ["loss.sam=1.0", "sam_checkpoint=/none.pth"]])
def test_without_a_source_training_towards_sam_is_refused(folder, tmp_path, overrides):
    message = "none.pth" if len(overrides) > 1 else "needs data.sam_targets or sam_checkpoint; or set it to 0"
    with pytest.raises(OVSDinoError, match=message):
        trainer(write_config(folder, tmp_path / "run"), *overrides)


def test_the_command_keeps_embeddings_of_sam_alone(folder, tmp_path, capsys):
    command = ["masks", "--images", str(folder), "--output", str(tmp_path / "out"), "--embeddings"]
    assert main([*command, "--generator", "felzenszwalb"]) == 2
    assert "--embeddings are SAM's" in capsys.readouterr().err
    command = ["masks", "--from", str(folder / "masks"), "--corrupt", "0.1", "--output", str(tmp_path / "out")]
    assert main([*command, "--embeddings"]) == 2
    assert "not --from masks" in capsys.readouterr().err
