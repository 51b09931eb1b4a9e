"""EI's options that cannot be, and what it holds beside its parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import batch, images, problem, strategy

from fusionbench.errors import UserError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": 0}, "'fusion.hidden' must be at least 1, not 0"),
        ({"lambda_aux": -0.1}, "'fusion.lambda_aux' must be at least 0, not -0.1"),
        ({"lambda_gate": float("nan")}, "'fusion.lambda_gate' must be finite and at least 0, not nan"),
        ({"lambda_gate": float("inf")}, "'fusion.lambda_gate' must be finite and at least 0, not inf"),
        ({"gaps": [1.0, -1.0]}, "'fusion.gaps' must be at least 0, not -1.0"),
        ({"gaps": [1.0]}, "fusion.gaps has 1 values for 2 modalities (image0, image1)"),
        ({"prior": "image2"}, "unknown fusion.prior 'image2'"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("early_intervention", images(2), **options)
    assert str(caught.value).startswith(said)


def test_gaps_move_with_the_network_and_are_not_saved() -> None:
    network = strategy("early_intervention", images(2), hidden=4, prior="per_sample", gaps=[1.0, 0.5])
    assert dict(network.named_buffers())["gaps"].tolist() == [1.0, 0.5]
    assert "gaps" not in network.state_dict()


@pytest.mark.parametrize("name", ["concat", "early_intervention"])
def test_complete_data_are_not_copied_and_others_are_cleaned(name: str) -> None:
    made = problem(("picture", "report"))
    network = strategy(name, made)
    cases = batch(made, 2)
    cleaned = network.present_inputs(cases.inputs, cases.present)
    network.problem = replace(made, complete=True)
    as_given = network.present_inputs(cases.inputs, cases.present)
    for modality, value in cases.inputs.items():
        assert as_given[modality].data_ptr() == value.data_ptr()
        assert cleaned[modality].data_ptr() != value.data_ptr()
        assert torch.equal(as_given[modality], cleaned[modality])
