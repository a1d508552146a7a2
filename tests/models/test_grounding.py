"""Names that no training showed borrow the rows of those that pixel labels taught."""

import pytest
import torch
import torch.nn.functional as F

from ovsdino.models.grounding import borrowed, grounded_phrases
from ovsdino.models.lexicon import LexiconTextTower, key_bytes

KEPT = ("road", "tarmac", "zebra", "asphalt")


@pytest.fixture
def tower():
    torch.manual_seed(0)
    made = LexiconTextTower(8, 8, 64, entries=1, common=1, kept=len(KEPT))
    rows = F.normalize(torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1.0], [0.6, 0.8, 0]]), dim=-1)
    rows = F.pad((rows * 127).round().to(torch.int8), (0, 5))
    state = {**made.state_dict(), "kept_keys": key_bytes(KEPT), "kept_rows": rows}
    made.load_state_dict(state)
    return made.eval()


def test_a_row_goes_to_its_nearest_lender_by_the_square_of_the_cosine():
    row, lenders = torch.tensor([[0.6, 0.8, 0.0]]), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    gate, weight = 0.36, torch.tensor([0.6, 0.0]).div(0.03).softmax(0)
    near = F.normalize(weight @ lenders, dim=0)
    torch.testing.assert_close(borrowed(row, lenders)[0], F.normalize((1 - gate) * row[0] + gate * near, dim=0))


def test_a_row_far_from_all_lenders_stays_and_one_of_theirs_too():
    lenders = torch.eye(4)[:2]
    torch.testing.assert_close(borrowed(torch.eye(4)[2:3], lenders), torch.eye(4)[2:3])
    torch.testing.assert_close(borrowed(-lenders[:1], lenders), -lenders[:1])
    torch.testing.assert_close(borrowed(lenders, lenders), lenders, atol=1e-4, rtol=0)


def test_what_was_shown_keeps_its_row_and_the_rest_borrow(tower):
    before = tower.encode(KEPT)
    tower.ground({"road": True, "tarmac": True, "zebra": False, "not stored": True})
    after = tower.encode(KEPT)
    assert torch.equal(after[:3], before[:3])
    torch.testing.assert_close(after[3:], borrowed(before[3:], before[:2]))
    tower.load_state_dict({**tower.state_dict(), "kept_rows": tower.kept_rows.flip(0)})
    assert torch.equal(tower.encode(["road"])[0], F.normalize(tower.kept_rows[0].float(), dim=-1))


def test_a_tower_that_nobody_grounded_and_one_without_lenders_borrow_nothing(tower):
    before = tower.encode(KEPT)
    tower.ground({"zebra": False})
    assert torch.equal(tower.encode(KEPT), before)


def test_the_shipped_list_has_nanos_names_as_lenders_and_pictures_as_keepers():
    phrases = grounded_phrases()
    assert all(phrases[name] for name in ("road", "tree", "pedestrian", "sofa", "potted plant"))
    assert not phrases["zebra"] and not phrases["door"] and "asphalt" not in phrases
