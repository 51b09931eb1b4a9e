"""Weights of second choice: when they are taken, and that the run's config tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import BERT

from fusionbench.config import Config, from_dict
from fusionbench.encoders import fallback
from fusionbench.encoders.hf_text import HFText
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

NOWHERE = "no/such/hub/id"  # not even an id, so that the hub client refuses it without asking anyone


def config(second: str | None, model: str | None = NOWHERE, weights: str = "hub") -> Config:
    node = {"name": "hf_text", "weights": weights, "model": model, "fallback": second}
    return from_dict({"data": {"name": "derm7pt"}, "fusion": {"name": "concat"}, "encoder": {"report": node}})


def test_the_fallback_takes_the_place_of_what_the_hub_does_not_give() -> None:
    made = fallback.settled(config("asset:minilm"))
    assert made.encoder["report"]["weights"] == "asset:minilm"
    assert fallback.notes(made.encoder) == {
        "report": "the encoder of 'report' starts from its fallback asset:minilm, not from 'no/such/hub/id' "
        "(encoder.report.weights=hub with encoder.report.fallback=null takes that, or tells why the hub does not give "
        "it)"
    }
    assert fallback.settled(made) == made
    assert from_dict(made.to_dict()) == made


def test_a_fallback_that_was_given_as_weights_is_not_said_to_be_for_want_of_the_hub() -> None:
    given = config("asset:minilm", weights="asset:minilm")
    assert fallback.settled(given) == given
    (said,) = fallback.notes(given.encoder).values()
    assert "starts from its fallback asset:minilm" in said
    assert "could not be had" not in said


def test_the_first_choice_is_kept_where_it_can_be_had(tmp_path: Path) -> None:
    HFText(ModalitySpec("text"), weights="random", config=BERT).net.save_pretrained(tmp_path)
    given = config("asset:minilm", model=str(tmp_path))
    assert fallback.settled(given) == given
    assert not fallback.notes(given.encoder)


@pytest.mark.parametrize("weights", ["random", "asset:minilm"])
def test_weights_that_are_not_the_hubs_have_no_fallback(weights: str) -> None:
    given = config("elsewhere", model=None, weights=weights)
    assert fallback.settled(given) == given
    assert not fallback.notes(given.encoder)


def test_without_a_fallback_nothing_is_settled_and_the_encoder_says_why() -> None:
    given = config(None)
    assert fallback.settled(given) == given
    with pytest.raises(UserError, match=f"the weights of '{NOWHERE}' could not be had from the hub"):
        HFText(ModalitySpec("text"), weights="hub", model=NOWHERE)


@pytest.mark.parametrize("second", ["random", "hub"])
def test_random_weights_are_no_fallback(second: str) -> None:
    with pytest.raises(UserError) as caught:
        fallback.settled(config(second))
    wanted = f"'encoder.fallback' must be asset:NAME or a path, not '{second}'; null stops the run instead"
    assert str(caught.value) == wanted


def test_weights_with_holes_stop_the_run(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    HFText(ModalitySpec("text"), weights="random", config=BERT).net.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if "layer.1" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="which would stay random"):
        fallback.settled(config("asset:minilm", model=str(tmp_path)))
