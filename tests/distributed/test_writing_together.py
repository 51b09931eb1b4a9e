"""Ranks whose cases end at different times write as many tokens, since a sharded model runs on all or on none."""

from __future__ import annotations

import torch
import torch.distributed as dist
from pairs import run_pair
from tiny import Words, problem

from fusionbench.encoders.base import Tokens
from fusionbench.encoders.vision_language import VisionLanguage
from fusionbench.fusion.answers import Answering
from fusionbench.fusion.wording import Prompt
from fusionbench.types import ModalitySpec


class Counting(VisionLanguage):
    """A decoder without layers that counts its passes and ends the text in the one before ``until``."""

    cross_layers, depth, width = (), 0, 1

    def __init__(self, until: int) -> None:
        super().__init__(ModalitySpec("text"))
        self.until, self.passes = until, 0

    def embed(self, inputs: torch.Tensor) -> Tokens:
        self.passes += 1
        dist.all_reduce(torch.zeros(1))  # as a sharded layer gathers its weights
        return Tokens(inputs[..., None].float())

    def vocabulary(self, values_BND: torch.Tensor) -> torch.Tensor:
        token = Words.end_id if self.passes >= self.until else 3
        return torch.nn.functional.one_hot(torch.full(values_BND.shape[:2], token), 20).float()

    def see(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def decoder_layer(self, *given: object) -> torch.Tensor:
        raise AssertionError

    def pool(self, tokens: Tokens) -> torch.Tensor:
        raise AssertionError


def write(most: int) -> tuple[int, list[int]]:
    """Return how many passes a rank made, the second needing more than the first, and what its cases were answered."""
    decoder, asked = Counting(until=2 + 2 * dist.get_rank()), problem(("picture", "report"))
    answering = Answering(asked, Words(), prompt="wet\n{text}:", decode="generate", max_new_tokens=most)
    ids = torch.tensor([[5], [6]])
    answers = answering.write(decoder, Prompt(ids, torch.ones_like(ids, dtype=torch.bool)), {})
    return decoder.passes, answers.classes.tolist()


def write_twice() -> list[tuple[int, list[int]]]:
    return [write(8), write(3)]


def test_all_ranks_write_until_the_last_of_their_cases_has_ended() -> None:
    first, second = run_pair(write_twice)
    assert first == second == [(4, [0, 0]), (3, [0, 0])]
