"""What a language model is asked about a case and how it may answer, as token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fusionbench.errors import UserError, nearest
from fusionbench.types import Answers

_PLACES = ("text", "classes")  # what a prompt may hold in braces
LONGEST = 32  # tokens of a class name: a longer one is a sentence, whose mean likelihood says little of the class


class LanguageTokenizer(Protocol):
    """What must be known of the tokenizer of a language model that is asked."""

    pad_id: int
    end_id: int | None

    def spelled(self, text: str) -> list[int]:
        """Return a text's token ids, whole and with nothing around; a special token that it spells is that one."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that token ids spell, special tokens left out."""


class Prompt(NamedTuple):
    """What each case is asked.

    Attributes:
        ids: (B, P) int64; the last is always a word.
        open: (B, P) bool, False at padding.
    """

    ids: Tensor
    open: Tensor


class Wording(nn.Module):
    """The prompt around a case's text, and the names of the classes as answers to it.

    An answer is the class's name, underscores read as spaces, and the end-of-text token, so that of names that share a
    beginning the shorter one is an answer too. A name is cut into tokens as it is behind the prompt.

    Args:
        tokenizer: Of the language model.
        template: The prompt, ``{text}`` once in it where a case's text stands, ``{classes}`` for the list of all names;
            it goes on behind the text, and neither there nor at its end it has a space before what is cut into tokens
            of its own. A special token is that which it spells.
        classes: In label order.

    Attributes:
        classes: Their names as the data have them.
        names: The classes in words.
        end_id: The end-of-text token.

    Raises:
        UserError: The prompt cannot be used, or a class cannot be told from another or is longer than 32 tokens.
    """

    prefix_P: Tensor
    suffix_P: Tensor
    names_KL: Tensor
    owner_T: Tensor
    place_T: Tensor
    source_U: Tensor
    target_U: Tensor
    own_UK: Tensor

    def __init__(self, tokenizer: LanguageTokenizer, template: str, classes: Sequence[str]) -> None:
        super().__init__()
        if tokenizer.end_id is None:
            raise UserError(
                "the language model's tokenizer has no end-of-text token; give another by encoder.tokenizer=PATH "
                "(encoder.MODALITY.tokenizer=PATH where each modality has its own encoder)"
            )
        self.classes, self.names = tuple(classes), tuple(words(name) for name in classes)
        self.tokenizer, self.pad_id, self.end_id = tokenizer, tokenizer.pad_id, tokenizer.end_id
        before, after = _around(template, self.names)
        suffix = tokenizer.spelled(after)
        answers = [_answer(tokenizer, after, suffix, name) for name in self.names]
        _check_distinct(classes, answers)
        self._keep("prefix_P", tokenizer.spelled(before))
        self._keep("suffix_P", suffix)
        self._lay_out(answers)

    def prompt(self, ids_BL: Tensor, present_B: Tensor) -> Prompt:
        """Put the texts (B, L), padded at the end, into the prompt; of an absent text nothing stands there."""
        rows = len(ids_BL)
        open_BL = (ids_BL != self.pad_id) & present_B[:, None]
        around = [part.expand(rows, -1) for part in (self.prefix_P, self.suffix_P)]
        opens = [torch.ones_like(part, dtype=torch.bool) for part in around]
        ids_BP = torch.cat([around[0], ids_BL.where(open_BL, self.pad_id), around[1]], dim=1)
        return Prompt(ids_BP, torch.cat([opens[0], open_BL, opens[1]], dim=1))

    def likelihoods(self, logits_BNV: Tensor) -> Tensor:
        """Return the mean log-likelihood of each class's answer tokens, (B, K) float32.

        Args:
            logits_BNV: Of the next token, behind the prompt and behind each token of all names in their order, (B, 1 +
                T, V).
        """
        logits = logits_BNV.float()
        chosen_BU = logits[:, self.source_U, self.target_U] - logits.logsumexp(dim=-1)[:, self.source_U]
        # No product of matrices: under autocast it would be rounded to bfloat16, in which classes tie.
        return (chosen_BU[..., None] * self.own_UK).sum(dim=1) / self.own_UK.sum(dim=0)

    def read(self, ids_BN: Tensor) -> Answers:
        """Return what each written text (B, N), given as token ids, says and names."""
        texts = [self.tokenizer.decode(_until(row, self.end_id)) for row in ids_BN.tolist()]
        named = [said(text, self.names) for text in texts]
        one = torch.tensor([_only(found) for found in named], dtype=torch.int64, device=ids_BN.device)
        return Answers(one, [" | ".join(self.classes[k] for k in found) for found in named], texts)

    def _lay_out(self, answers: Sequence[Sequence[int]]) -> None:
        """Keep the names' tokens, and where the likelihood of each of the U answer tokens is read."""
        longest = max(map(len, answers))
        starts = list(accumulate(map(len, answers), initial=1))
        self._keep("names_KL", [[*ids, *[self.pad_id] * (longest - len(ids))] for ids in answers])
        self._keep("owner_T", [k for k, ids in enumerate(answers) for _ in ids])
        self._keep("place_T", [place for ids in answers for place in range(len(ids))])
        # A name's first token is read behind the prompt, the others and the end behind the name's own tokens.
        self._keep(
            "source_U", [x for ids, at in zip(answers, starts, strict=False) for x in (0, *range(at, at + len(ids)))]
        )
        self._keep("target_U", [token for ids in answers for token in (*ids, self.end_id)])
        owner_U = torch.tensor([k for k, ids in enumerate(answers) for _ in (*ids, self.end_id)])
        self.register_buffer("own_UK", owner_U[:, None] == torch.arange(len(answers)), persistent=False)

    def _keep(self, name: str, values: Sequence[object]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)


def words(name: str) -> str:
    """Return a class's name as it is said: underscores are spaces."""
    return " ".join(name.replace("_", " ").split())


def find(text: str, names: Sequence[str]) -> int:
    """Return the one name that a text says; -1 if none or several.

    A text that says two names, as in "not inherited, acquired", names no single class: ours, since only a reader could
    tell which is meant.
    """
    return _only(said(text, names))


def said(text: str, names: Sequence[str]) -> list[int]:
    """Return which names a text says, as whole words and whatever the case of letters, in the order of the names.

    What is said inside of a longer name does not count.
    """
    whole_text, hits = " ".join(text.casefold().split()), []
    for index, name in enumerate(names):
        whole = rf"(?<![^\W_]){re.escape(name.casefold())}(?![^\W_])"
        hits += [(found.start(), found.end(), index) for found in re.finditer(whole, whole_text)]
    inside = {a for a in hits for b in hits if b[0] <= a[0] and a[1] <= b[1] and a[1] - a[0] < b[1] - b[0]}
    return sorted({index for _, _, index in set(hits) - inside})


def _only(found: Sequence[int]) -> int:
    return found[0] if len(found) == 1 else -1


def _until(ids: Sequence[int], end: int) -> Sequence[int]:
    return ids[: ids.index(end)] if end in ids else ids


def _around(template: str, names: Iterable[str]) -> tuple[str, str]:
    """Return what stands before and behind the text.

    Raises:
        UserError: The template cannot be used.
    """
    for found in re.finditer(r"\{\s*([\w.]+)\s*\}", template):
        if found[0] not in (f"{{{place}}}" for place in _PLACES):
            raise UserError(f"'fusion.prompt' holds {found[0]}, for which nothing is put{nearest(found[1], _PLACES)}")
    parts = template.split("{text}")
    if len(parts) != 2:
        raise UserError(
            f"'fusion.prompt' must hold {{text}} once, where a case's text stands, not {len(parts) - 1} times"
        )
    before, after = (part.replace("{classes}", ", ".join(names)) for part in parts)
    if not after.strip() or after != after.rstrip(" "):
        raise UserError("'fusion.prompt' must go on behind {text} and not end with a space, such as '{text}\\nAnswer:'")
    if before.endswith(" "):
        raise UserError(
            "'fusion.prompt' must not have a space right before {text}, which would cut the text's first word into "
            "other tokens than the language model knows it by; put a line break there, such as 'Text:\\n{text}'"
        )
    return before, after


def _answer(tokenizer: LanguageTokenizer, before: str, known: Sequence[int], name: str) -> list[int]:
    """Return the tokens of a class's name behind the prompt.

    Raises:
        UserError: It has none, too many, or runs into the prompt's last token.
    """
    whole = tokenizer.spelled(f"{before} {name}")
    ids = whole[len(known) :]
    if whole[: len(known)] != list(known) or not ids:
        raise UserError(
            f"the class name '{name}' cannot be told from the end of 'fusion.prompt'; end that with a colon"
        )
    if len(ids) > LONGEST:
        raise UserError(f"the class name '{name}' has {len(ids)} tokens, at most {LONGEST} are possible; shorten it")
    return ids


def _check_distinct(names: Sequence[str], answers: Sequence[Sequence[int]]) -> None:
    """Refuse names that the language model cannot tell apart."""
    first: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, map(tuple, answers), strict=True):
        if ids in first:
            raise UserError(f"the classes '{first[ids]}' and '{name}' are the same to the language model; rename one")
        first[ids] = name
