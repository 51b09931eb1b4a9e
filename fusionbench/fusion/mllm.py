"""A vision-language model alone, fine-tuned to name the class: the baseline of MDF-MLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from fusionbench.adapt.views import EncoderPool
from fusionbench.fusion.answers import Answering
from fusionbench.fusion.base import Criterion, Strategy
from fusionbench.fusion.question import language_model, load_tokenizer, picture_and_text, question
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem


@register
class MLLM(Strategy):
    """The language model reads picture and text and answers with a class's name, as MDF-MLLM's baseline does.

    Of arXiv 2509.21358, where Llama-3.2-11B-Vision-Instruct gets 60 % accuracy on 1,305 fundus pictures with text. The
    paper tells neither prompt nor reading; ours are those of ``mdf``. The picture goes to the language model's own
    vision tower, so its modality has no encoder; several pictures of a case are read side by side.

    Args:
        prompt: What is asked: ``{text}`` stands for the case's text, which an absent one leaves empty, ``{classes}``
            for the list of names. It goes on behind the text, and has a space neither right before it nor at its end.
            Special tokens are spelled, so for Llama 3.2 it begins with ``<|begin_of_text|>``.
        decode: ``likelihood``: the most likely name. ``generate``: beside it, in evaluation, the model writes and its
            text is searched for class names; one that names none counts as wrong, as in the paper, or several, as ours.
            Class names alone count: on ``fundus`` "Best disease" names none, while the paper seems to take a disease's
            name for its class, there ``inherited``. Texts are kept in the table of predictions, which is tracked: words
            of the model's own, among which it may repeat words of the clinical text.
        max_new_tokens: How many tokens it writes, and are kept, at most.
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, 2)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("llama_vision", "mllama")}
    unencoded: ClassVar[tuple[str, ...]] = ("image", "slices")

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        prompt: str = "Clinical text:\n{text}\nWhich of these is it: {classes}?\nAnswer:",
        decode: Literal["likelihood", "generate"] = "likelihood",
        max_new_tokens: int = 16,
    ) -> None:
        super().__init__(problem)
        self.picture, self.text = picture_and_text(problem, "mllm")
        tokenizer = load_tokenizer(pool, self.text)
        self.answering = Answering(problem, tokenizer, prompt=prompt, decode=decode, max_new_tokens=max_new_tokens)
        self.views = pool.views({self.text: self.text})
        language_model(self.views, self.text)

    @property
    def feature_views(self) -> tuple[str, ...]:
        """Return none, since what leaves the language model depends on two modalities."""
        return ()

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Show the picture to every cross-attention layer and score the names."""
        with question(self, inputs, present_BM) as asked:
            given = (asked.encoder, asked.prompt, asked.memories)
            return Output(self.answering(*given).logits, answers=self.answering.answers(*given))

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the cross-entropy of the answer."""
        return {"answer": self.answering.loss(output.logits, batch.target, criterion)}
