"""Texts that fit into an encoder, or not, with what a strategy puts around them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import LLAMA, SPECS, adaptation, batch, encoder_node, pool_for, problem, strategy

from fusionbench import preflight
from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import UserError
from fusionbench.fusion.base import Strategy
from fusionbench.types import Problem

MADE = problem(("picture", "report"))
MOST = LLAMA["max_position_embeddings"]


def mllm(**options: Any) -> Strategy:
    return strategy("mllm", MADE, pool_for("mllm", MADE, "frozen", {"text": "llama_vision"}), **options)


def check(made: Strategy, tokens: int) -> None:
    """Look at data whose longest text has so many tokens."""
    source: Any = SimpleNamespace(tokenizers={}, data=SimpleNamespace(cells={"report": [[], [1] * tokens]}))
    source.tokenizers["report"] = SimpleNamespace(pad_id=0)
    preflight._check_texts(made, source)


@pytest.mark.parametrize("options", [{}, {"decode": "generate", "max_new_tokens": 12}], ids=["likelihood", "generate"])
def test_prompt_and_answer_take_positions_of_the_language_model(options: dict[str, Any]) -> None:
    made = mllm(prompt="{text}\nAnswer:", **options).eval()
    wording: Any = made.answering.wording
    written = 11 if options else 0
    left = MOST - len(wording.prefix_P) - len(wording.suffix_P) - max(wording.names_KL.shape[1], written)
    check(made, left)
    with pytest.raises(UserError, match=rf"'report' has {left + 1} tokens, .* takes {MOST} in all; .*_length={left}$"):
        check(made, left + 1)
    cases = batch(MADE, 2)
    cases.inputs["report"] = torch.full((2, left), 7)
    assert made(cases.inputs, cases.present).logits.isfinite().all()


def test_a_prompt_without_room_for_a_text_is_to_be_shortened() -> None:
    with pytest.raises(UserError, match=re.escape("shorten 'fusion.prompt' or take another language model")):
        check(mllm(prompt="{text}\n" + "so " * MOST + "Answer:"), 1)


def test_modalities_that_one_sequence_has_no_room_for_are_refused_before_training() -> None:
    names = ("left", "report")
    made = Problem({"left": SPECS["picture"], "report": SPECS["report"]}, ("a", "b", "c"))
    kind, given = encoder_node("llama")
    pool = EncoderPool(made.modalities, dict.fromkeys(names, (kind, {**given, "rope": True})), adaptation("lora"))
    network = strategy("unimodel", made, pool)
    source: Any = SimpleNamespace(tokenizers=["report"], data=SimpleNamespace(cells={"report": [[1] * (MOST - 16)]}))
    preflight._check_joined(network, source)
    source.data.cells["report"].append([1] * (MOST - 15))
    with pytest.raises(UserError, match=rf"one sequence of {MOST + 1} tokens, but its encoder takes {MOST}"):
        preflight._check_joined(network, source)
