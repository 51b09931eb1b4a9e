"""Classification by a language model that reads a picture: how likely each class's name is, or what it writes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fusionbench.encoders.vision_language import Memory, Past, VisionLanguage
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.fusion.base import Criterion
from fusionbench.fusion.wording import LanguageTokenizer, Prompt, Wording
from fusionbench.types import Answers, Problem

_DECODE = ("likelihood", "generate")


class Reading(NamedTuple):
    """What a language model made of its cases.

    Attributes:
        logits: (B, K).
        summaries: Of the layers that were asked for, the mean (B, D) of what left them over the prompt's own tokens.
    """

    logits: Tensor
    summaries: dict[int, Tensor]


class Answering(nn.Module):
    """Asks a language model about cases and scores its answers.

    The logit of a class is the mean log-likelihood of its answer's tokens (``Wording``) given picture and prompt. All
    names are read in one pass: the sequence is [prompt | name 1 | name 2 | ...], each name attends to the prompt and to
    itself, and its positions go on behind the prompt, so the prompt's keys and values are computed once.

    The loss is the mean next-token cross-entropy of the true class's answer alone, averaged over cases, which class
    weights weigh; it has no part for the other classes, so label smoothing is refused. With several classes to a case,
    which the paper has not, ours is the task's binary cross-entropy of the likelihoods under a learned scale and bias
    of each class.

    Args:
        problem: Modalities and classes.
        tokenizer: Of the language model.
        prompt: Template, see ``Wording``.
        decode: ``generate`` also writes an answer in evaluation.
        max_new_tokens: How many tokens it then writes at most.

    Raises:
        UserError: An option or a class name cannot be used.
    """

    def __init__(
        self,
        problem: Problem,
        tokenizer: LanguageTokenizer,
        *,
        prompt: str,
        decode: Literal["likelihood", "generate"],
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        if decode not in _DECODE:
            raise UserError(f"'fusion.decode' cannot be '{decode}'{nearest(decode, _DECODE)}")
        if decode == "generate" and problem.multilabel:
            raise UserError("'fusion.decode: generate' names one class, but a case can have several; use likelihood")
        check_number("fusion.max_new_tokens", max_new_tokens, least=1)
        self.wording = Wording(tokenizer, prompt, problem.classes)
        self.writes, self.max_new_tokens, self.multilabel = decode == "generate", max_new_tokens, problem.multilabel
        if problem.multilabel:
            self.scale = nn.Parameter(torch.ones(len(problem.classes)))
            self.bias = nn.Parameter(torch.zeros(len(problem.classes)))

    def forward(
        self,
        encoder: VisionLanguage,
        prompt: Prompt,
        memories: Mapping[int, Memory],
        summarize: Collection[int] = (),
    ) -> Reading:
        """Score all classes.

        Args:
            encoder: The language model, the view that is meant being selected.
            prompt: Of each case.
            memories: What each cross-attention layer reads, by its place.
            summarize: Layers whose outputs are wanted; they never depend on the names.
        """
        wording, asked = self.wording, prompt.ids.shape[1]
        names_TD = encoder.embed(wording.names_KL).values[wording.owner_T, wording.place_T]
        values = encoder.embed(prompt.ids).values
        values = torch.cat([values, names_TD.expand(len(values), -1, -1)], dim=1)
        mask, positions = self._layout(prompt)
        summaries = {}
        for index in range(encoder.depth):
            values = encoder.run_layer(index, values, mask, positions, memories.get(index))
            if index in summarize:
                summaries[index] = _mean(values[:, :asked], prompt.open)
        scores = wording.likelihoods(encoder.vocabulary(values[:, asked - 1 :]))
        return Reading(self.scale * scores + self.bias if self.multilabel else scores, summaries)

    @torch.no_grad()
    def write(self, encoder: VisionLanguage, prompt: Prompt, memories: Mapping[int, Memory]) -> Answers:
        """Write greedily and return each text with what it names.

        The prompt and the memories are read once; each further pass is of one token. It stops once all cases have ended
        their texts, those of other processes included: where these differ in how many passes they make, a sharded model
        hangs.
        """
        ids, open_BN = prompt
        mask, positions = _causal(open_BN), _places(open_BN)
        past, texts, ended_B1 = Past(), list[Tensor](), torch.zeros_like(open_BN[:, :1])
        for _ in range(self.max_new_tokens):
            values = encoder.embed(ids).values
            for index in range(encoder.depth):
                values = encoder.run_layer(index, values, mask, positions, memories.get(index), past)
            ids = encoder.vocabulary(values[:, -1:]).argmax(dim=-1)
            texts.append(ids)
            ended_B1 = ended_B1 | (ids == self.wording.end_id)
            if _all_of_all(ended_B1):
                break
            open_BN = torch.cat([open_BN, torch.ones_like(ended_B1)], dim=1)
            mask, positions = open_BN[:, None], positions[:, -1:] + 1
        return self.wording.read(torch.cat(texts, dim=1))

    def answers(self, encoder: VisionLanguage, prompt: Prompt, memories: Mapping[int, Memory]) -> Answers | None:
        """Return what ``write`` does, in evaluation and if it was asked for; else None."""
        return self.write(encoder, prompt, memories) if self.writes and not self.training else None

    def loss(self, logits_BK: Tensor, target: Tensor, criterion: Criterion) -> Tensor:
        """Return the cross-entropy of the true answers' tokens, or the criterion when multi-label."""
        if self.multilabel:
            return criterion(logits_BK, target)
        told_B = logits_BK.gather(1, target[:, None])[:, 0]
        weight_K: Tensor | None = getattr(criterion, "weight", None)
        return -(told_B if weight_K is None else weight_K[target] * told_B).mean()

    def _layout(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Return mask (B, N, N) and positions (B, N) of prompt and names."""
        rows, owner_T = len(prompt.open), self.wording.owner_T
        own_N = torch.cat([owner_T.new_full((prompt.open.shape[1],), -1), owner_T])
        open_BN = torch.cat([prompt.open, torch.ones_like(owner_T, dtype=torch.bool).expand(rows, -1)], dim=1)
        seen_NN = (own_N == -1)[None] | (own_N[:, None] == own_N[None])
        behind_BT = prompt.open.sum(dim=1, keepdim=True) + self.wording.place_T
        return _causal(open_BN) & seen_NN, torch.cat([_places(prompt.open), behind_BT], dim=1)


def _causal(open_BN: Tensor) -> Tensor:
    """Return which token sees which, (B, N, N): open ones before it and itself, so that none sees nothing."""
    count = open_BN.shape[1]
    before_NN = torch.ones(count, count, dtype=torch.bool, device=open_BN.device).tril()
    return (before_NN & open_BN[:, None]) | torch.eye(count, dtype=torch.bool, device=open_BN.device)


def _places(open_BN: Tensor) -> Tensor:
    """Return positions (B, N) that padding has no part in."""
    return (open_BN.cumsum(dim=1) - 1).clamp(min=0)


def _all_of_all(flags: Tensor) -> bool:
    """Whether all are true, in every process if there are several; all must ask."""
    whole = flags.all().int()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(whole, dist.ReduceOp.MIN)
    return bool(whole)


def _mean(values_BPD: Tensor, open_BP: Tensor) -> Tensor:
    weight_BP1 = open_BP[..., None].to(values_BPD.dtype)
    return (values_BPD * weight_BP1).sum(dim=1) / weight_BP1.sum(dim=1)


def answering_of(network: nn.Module) -> Answering | None:
    """Return what asks a language model in a network, None where nothing does."""
    return next((m for m in network.modules() if isinstance(m, Answering)), None)


@contextmanager
def unwritten(network: nn.Module) -> Iterator[None]:
    """Have a network write no answers for a while, only score them."""
    writing = [m for m in network.modules() if isinstance(m, Answering) and m.writes]
    for answering in writing:
        answering.writes = False
    try:
        yield
    finally:
        for answering in writing:
            answering.writes = True
