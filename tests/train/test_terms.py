"""A loss is a list of terms: those without a weight are left out, none at all is an error."""

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.train.initial import changed_model
from ovsdino.train.start import train_config
from ovsdino.train.terms import Term, active, weighted
from ovsdino.train.weak.objective import terms_of


def product(weight):
    return Term("sum", weight, lambda batch, outputs: (batch * outputs).sum())


def count(weight):
    return Term("count", weight, lambda batch, outputs: torch.tensor(float(len(batch))))


def test_each_term_is_multiplied_by_its_weight():
    found = weighted(active([product(0.5), count(2.0)]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0]))
    assert {name: value.item() for name, value in found.items()} == {"sum": 2.0, "count": 6.0}


def test_a_term_without_a_weight_is_not_computed():
    assert [term.name for term in active([product(0.0), count(1.0)])] == ["count"]
    with pytest.raises(OVSDinoError, match="no term with a weight is left"):
        active([product(0.0)])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["contrast", "mask", "present", "pull", "words", "preserve", "boundary"]),
        ({"decoder": False}, ["contrast", "mask", "present", "pull", "words"]),
        ({"data": {}}, ["contrast"]),
        ({"data": {"masks": "somewhere", "masks_per_image": 0}}, ["contrast"]),
        ({"architecture": {"smd": None}}, ["contrast", "mask", "present", "pull", "words", "boundary"]),
        ({"loss": {"sam": 1.0, "pull": 0.0}, "data": {}}, ["contrast", "sam"]),
        ({"loss": {"contrast": 0.0, "mask": 0.0, "words": 0.0}}, ["present", "pull", "preserve", "boundary"]),
    ],
)
def test_the_loss_has_the_terms_that_the_run_has_inputs_for(changes, names):
    config = train_config({"supervision": "captions", "data": {"masks": "somewhere"}, **changes})
    assert [term.name for term in terms_of(config, changed_model(config))] == names
