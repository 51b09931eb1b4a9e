"""What strategies that ask a language model about picture and text begin with: its parts, and the question itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.vision_language import Memory, VisionLanguage
from fusionbench.errors import UserError
from fusionbench.fusion.answers import Answering
from fusionbench.fusion.wording import LanguageTokenizer, Prompt
from fusionbench.layers.present_rows import PresentRows
from fusionbench.types import Problem


class Asker(Protocol):
    """A strategy that asks a language model about a picture and a text."""

    views: Views
    problem: Problem
    names: tuple[str, ...]
    picture: str
    text: str
    answering: Answering

    def present_inputs(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """Replace what is absent by zeros, and give each picture of a case a row of its own."""


class Question(NamedTuple):
    """What is asked about a batch of B cases of S pictures each, R = B·S.

    Attributes:
        encoder: The language model.
        prompt: Of each case.
        pictures: (R, 3, H, W).
        shown: (R,) bool, which pictures there are; None: all.
        rows: Those that there are, for networks that shall see no others.
        seen: (R, T, D), the language model's own tokens of the pictures, zeros where there is none.
        memories: These tokens for every cross-attention layer, by its place, closed where there is no picture.
    """

    encoder: VisionLanguage
    prompt: Prompt
    pictures: Tensor
    shown: Tensor | None
    rows: PresentRows
    seen: Tensor
    memories: dict[int, Memory]


@contextmanager
def question(asker: Asker, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Iterator[Question]:
    """Put the question about a batch, the language model's view being selected meanwhile."""
    own = asker.present_inputs(inputs, present_BM)
    here = dict(zip(asker.names, present_BM.unbind(dim=1), strict=True))
    slices = asker.problem.modalities[asker.picture].instances
    shown = None if asker.problem.complete else here[asker.picture].repeat_interleave(slices)
    prompt = asker.answering.wording.prompt(own[asker.text], here[asker.text])
    encoder, rows = language_model(asker.views, asker.text), PresentRows(shown)
    with encoder.selector.select((asker.views.address[asker.text][1],)):
        seen = rows.put(encoder.see(rows.take(own[asker.picture])))
        memories = dict.fromkeys(encoder.cross_layers, open_memory(seen, shown, len(present_BM)))
        yield Question(encoder, prompt, own[asker.picture], shown, rows, seen, memories)


def picture_and_text(problem: Problem, fusion: str) -> tuple[str, str]:
    """Return the names of the one modality of pictures and the one of texts.

    Raises:
        UserError: There are others.
    """
    kinds = {name: "picture" if spec.is_image else spec.kind for name, spec in problem.modalities.items()}
    if sorted(kinds.values()) != ["picture", "text"]:
        given = ", ".join(f"{name} ({spec.kind})" for name, spec in problem.modalities.items())
        raise UserError(f"fusion '{fusion}' takes one modality of pictures and one of texts, not {given}")
    picture, text = sorted(kinds, key=lambda name: kinds[name])
    return picture, text


def load_tokenizer(pool: EncoderPool, modality: str) -> LanguageTokenizer:
    """Return the tokenizer of a modality's language model.

    Raises:
        UserError: Its encoder is no language model that reads pictures, or has no tokenizer.
    """
    kind, options = pool.nodes[modality]
    if not issubclass(kind, VisionLanguage):
        raise UserError(f"modality '{modality}' needs a language model that reads pictures: llama_vision or mllama")
    load: Any = kind
    made: LanguageTokenizer = load.load_tokenizer(options)
    return made


def language_model(views: Views, view: str) -> VisionLanguage:
    """Return the language model behind a view, whose layers a strategy runs itself.

    Raises:
        UserError: The tuning method works around its layers.
    """
    encoder = views.encoder(view)
    assert isinstance(encoder, VisionLanguage)
    if encoder.around is not None:
        raise UserError(
            "this tuning method works around an encoder's layers, which the language model of this fusion runs "
            "without; choose one that works inside of them, such as adapt=lora"
        )
    return encoder


def open_memory(tokens_RTD: Tensor, present_R: Tensor | None, cases: int) -> Memory:
    """Return the memory (B, S·T, D) of S pictures of each case, given by pictures; absent ones are closed."""
    if present_R is None:
        return case_memory(tokens_RTD, None, cases)
    bias_RT = tokens_RTD.new_zeros(tokens_RTD.shape[:2]).masked_fill(~present_R[:, None], float("-inf"))
    return case_memory(tokens_RTD, bias_RT, cases)


def case_memory(tokens_RTD: Tensor, bias_RT: Tensor | None, cases: int) -> Memory:
    """Put the tokens of all pictures of a case side by side."""
    bias = None if bias_RT is None else bias_RT.reshape(cases, -1)
    return Memory(tokens_RTD.reshape(cases, -1, tokens_RTD.shape[-1]), bias)
