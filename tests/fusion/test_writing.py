"""Writing with kept keys and values: each pass gives what a whole new reading does, and reads one token alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mdf_networks import MADE, PRESENT, cases_of, mdf
from test_answers import Scripted, asking
from tiny import Words
from torch import Tensor
from torch.nn import functional as F

from fusionbench.encoders.vision_language import Memory, Past, VisionLanguage
from fusionbench.fusion.answers import Answering
from fusionbench.fusion.question import Question, question
from fusionbench.fusion.wording import Prompt

LENGTH, WORDS = 5, 100
ENCODERS = ("llama_vision", "mllama")


@contextmanager
def asked(encoder: str, method: str = "full") -> Iterator[Question]:
    """Put a question about texts of many lengths, one absent, and pictures that are gated, one closed everywhere."""
    with question(mdf(encoder, method), cases_of().inputs, PRESENT) as made:
        for index, (tokens, bias) in made.memories.items():
            made.memories[index] = Memory(tokens, bias - 0.3 * torch.arange(tokens.shape[1]))
        yield made


def reread(asked: Question, texts_BN: Tensor) -> Tensor:
    """Return the logits (B, V) behind the prompt and what was written, all of it read anew."""
    ids = torch.cat([asked.prompt.ids, texts_BN], dim=1)
    open_BN = torch.cat([asked.prompt.open, torch.ones_like(texts_BN, dtype=torch.bool)], dim=1)
    count = ids.shape[1]
    mask = torch.ones(count, count, dtype=torch.bool).tril() & open_BN[:, None] | torch.eye(count, dtype=torch.bool)
    positions = (open_BN.cumsum(dim=1) - 1).clamp(min=0)
    values = asked.encoder.embed(ids).values
    for index in range(asked.encoder.depth):
        values = asked.encoder.run_layer(index, values, mask, positions, asked.memories.get(index))
    return asked.encoder.vocabulary(values[:, -1:])[:, 0]


def written(asked: Question, monkeypatch: pytest.MonkeyPatch, script_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the texts (B, N) that are written and the logits (B, N, V) before each token; a script may choose them."""
    logits, texts = [], []
    real = asked.encoder.vocabulary

    def noted(values_BND: Tensor) -> Tensor:
        logits.append(real(values_BND)[:, -1:])
        return logits[-1] if script_BN is None else F.one_hot(script_BN[:, len(logits) - 1, None], WORDS).float()

    answering = Answering(MADE, Words(), prompt="wet\n{text}:", decode="generate", max_new_tokens=LENGTH)
    monkeypatch.setattr(asked.encoder, "vocabulary", noted)
    monkeypatch.setattr(answering.wording, "read", texts.append)
    answering.write(asked.encoder, asked.prompt, asked.memories)
    monkeypatch.undo()
    return texts[0], torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_written_is_what_rereading_everything_writes(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(encoder) as made:
        texts, _ = written(made, monkeypatch)
        wanted = torch.zeros(4, 0, dtype=torch.long)
        for _ in range(LENGTH):
            wanted = torch.cat([wanted, reread(made, wanted).argmax(dim=-1)[:, None]], dim=1)
        assert torch.equal(texts, wanted)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("setting", ["plain", "checkpointing", "autocast"])
def test_each_pass_gives_the_logits_of_a_whole_new_reading(
    encoder: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = torch.randint(3, WORDS, (4, LENGTH))
    close = {"rtol": 0.05, "atol": 0.03} if setting == "autocast" else {"rtol": 1e-5, "atol": 1e-5}
    with asked(encoder, "mor") as made, torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
        made.encoder.checkpointing = setting == "checkpointing"
        texts, found = written(made, monkeypatch, script)
        assert torch.equal(texts, script)
        for place in range(LENGTH):
            torch.testing.assert_close(found[:, place], reread(made, script[:, :place]), **close)
    assert (found[:, 1] - found[:, 2]).abs().max() > 0.2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_prompt_and_the_pictures_are_read_once_and_then_a_token_at_a_time(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(encoder) as made:
        lengths, keys = [], []
        embed, steps = made.encoder.embed, {"llama_vision": ".k", "mllama": "cross_attn.k_proj"}
        monkeypatch.setattr(made.encoder, "embed", lambda ids: lengths.append(ids.shape[1]) or embed(ids))
        for name, part in made.encoder.named_modules():
            if name.endswith(steps[encoder]):
                part.register_forward_hook(lambda *_, name=name: keys.append(name))
        written(made, monkeypatch, torch.full((4, LENGTH), 3))
    assert lengths == [made.prompt.ids.shape[1], *[1] * (LENGTH - 1)]
    assert len(keys) == len(set(keys)) == len(made.encoder.cross_layers)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_was_read_before_is_kept_with_checkpointing_and_gradients_too(encoder: str) -> None:
    with asked(encoder) as made:
        made.encoder.checkpointing, past = True, Past()
        ids = torch.randint(3, WORDS, (4, 6))
        open_B1N, positions = torch.ones(4, 1, 6, dtype=torch.bool), torch.arange(6).expand(4, -1)
        values = [made.encoder.embed(ids[:, place : place + 1]).values for place in range(6)]
        for place, value in enumerate(values):
            given = (open_B1N[..., : place + 1], positions[:, place : place + 1], None, past)
            value = made.encoder.run_layer(1 - made.encoder.cross_layers[0], value, *given)
        value.sum().backward()
    assert past.words.get_seq_length(0) == 6


@pytest.fixture
def _alone() -> Iterator[None]:
    """Be the one process of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def passes(script: VisionLanguage) -> int:
    """Return how many passes it takes until two cases have ended their texts, the second later than the first."""
    steps: list[Any] = []
    real = script.vocabulary
    script.vocabulary = lambda values: steps.append(values) or real(values)
    ids = torch.tensor([[17], [18]])
    answers = asking(max_new_tokens=6).write(script, Prompt(ids, torch.ones_like(ids, dtype=torch.bool)), {})
    assert answers.classes.tolist() == [3, -1]
    return len(steps)


def ending() -> Scripted:
    dry = Words().spelled("dry")[0]
    return Scripted({17: dry, dry: 2, 18: 2})


def test_writing_stops_when_all_cases_have_ended() -> None:
    assert passes(ending()) == 2


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("others", "wanted"), [(True, 2), (False, 6)])
def test_writing_goes_on_until_the_cases_of_every_process_have_ended(
    others: bool, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda own, op: real(own.mul_(int(others)), op))
    assert passes(ending()) == wanted
