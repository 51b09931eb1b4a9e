"""Prompts and answers as tokens: what stands where, names that are alike, what a text names, and bad input."""

from __future__ import annotations

import pytest
import torch
from tiny import Words
from torch import Tensor

from fusionbench.data.assets import asset
from fusionbench.encoders.hf_tokenizer import HFTokenizer
from fusionbench.errors import UserError
from fusionbench.fusion.wording import LONGEST, Wording, _around, find, words

CLASSES = ("macular", "wet_macular_degeneration", "wet", "dry")
TEMPLATE = "macular\n{text} {classes}:"


def wording(classes: tuple[str, ...] = CLASSES, template: str = TEMPLATE) -> Wording:
    return Wording(Words(), template, classes)


@pytest.mark.parametrize("template", ['{"say": 1}\n{text} {} of {classes}:', "{text} {a b}:"])
def test_braces_around_what_is_no_name_are_text(template: str) -> None:
    assert "{" in "".join(_around(template, ("wet", "dry")))


def test_the_prompt_stands_around_the_text_and_padding_is_closed() -> None:
    made = wording(("wet", "dry"), "macular\n{text} ? {classes}:")
    ids = torch.tensor([[9, 9, 9], [9, 0, 0], [9, 9, 9]])
    prompt = made.prompt(ids, torch.tensor([True, True, False]))
    macular, wet, dry, colon, mark, comma = (Words.known.index(w) + 3 for w in ("macular", "wet", "dry", ":", "?", ","))
    after = [mark, wet, comma, dry, colon]
    assert prompt.ids.tolist() == [[macular, *own, *after] for own in ([9, 9, 9], [9, 0, 0], [0, 0, 0])]
    assert prompt.open.sum(dim=1).tolist() == [9, 7, 6]
    assert torch.equal(prompt.open[:, 1:4], torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool())


def plain(made: Wording, logits_NV: Tensor) -> list[Tensor]:
    """Return each class's mean log-likelihood, token by token."""
    scores, at = [], 1
    for name in made.names:
        ids = made.tokenizer.spelled(name)
        sources, targets = [0, *range(at, at + len(ids))], [*ids, made.end_id]
        scores.append(sum(logits_NV[s].log_softmax(0)[t] for s, t in zip(sources, targets, strict=True)) / len(targets))
        at += len(ids)
    return scores


def test_likelihoods_are_the_mean_over_a_names_tokens_and_its_end() -> None:
    made = wording()
    logits = 3 * torch.randn(5, 1 + len(made.owner_T), 20)
    wanted = torch.stack([torch.stack(plain(made, row)) for row in logits])
    torch.testing.assert_close(made.likelihoods(logits), wanted)


def test_likelihoods_are_the_same_in_bfloat16_training() -> None:
    made = wording()
    logits = 3 * torch.randn(5, 1 + len(made.owner_T), 20)
    wanted = made.likelihoods(logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.likelihoods(logits), wanted)
    assert torch.equal(made.bfloat16().likelihoods(logits), wanted)


def test_of_names_that_share_a_beginning_each_can_win() -> None:
    made = wording(("wet", "wet_macular", "wet_macular_degeneration"))
    for index, name in enumerate(made.names):
        own = [*made.tokenizer.spelled(name), made.end_id]
        logits = torch.zeros(1, 1 + len(made.owner_T), 20)
        for token, source in zip(own, made.source_U[made.own_UK[:, index]].tolist(), strict=True):
            logits[0, source, token] = 9.0
        assert made.likelihoods(logits).argmax() == index


@pytest.mark.assets
def test_with_smollm2_names_are_cut_as_they_are_behind_the_prompt() -> None:
    tokenizer = HFTokenizer({"weights": str(asset("smollm2"))}, special=False)
    made = Wording(tokenizer, "<|im_start|>Report:\n{text}\nAnswer:", ("malignant", "benign_tumour", "benign"))
    assert made.prefix_P[0] == tokenizer.spelled("<|im_start|>")[0]
    assert len(tokenizer.spelled("<|im_start|>")) == 1
    suffix = made.suffix_P.tolist()
    for k, name in enumerate(("malignant", "benign tumour", "benign")):
        own = made.names_KL[k, : int((made.owner_T == k).sum())].tolist()
        assert suffix + own == tokenizer.spelled(f"\nAnswer: {name}")
        assert tokenizer.decode([*own, made.end_id]) == f" {name}"
    written = torch.tensor([tokenizer.spelled(" A benign  Tumour"), [*tokenizer.spelled(" no"), made.end_id, 5, 5]][:1])
    assert made.read(written).classes.tolist() == [1]


def test_what_follows_the_end_names_nothing() -> None:
    made = wording()
    wet, end = Words().spelled("wet")[0], Words.end_id
    found = made.read(torch.tensor([[1, wet, end], [end, wet, wet]]))
    assert found.classes.tolist() == [2, -1]
    assert (found.named, found.texts) == (["wet", ""], ["other wet", ""])


def test_a_text_that_names_several_classes_is_told_from_one_that_names_none() -> None:
    made = wording()
    degeneration, wet, dry, comma = (Words().spelled(word)[0] for word in ("degeneration", "wet", "dry", ","))
    found = made.read(torch.tensor([[dry, comma, wet], [degeneration, comma, comma]]))
    assert found.classes.tolist() == [-1, -1]
    assert found.named == ["wet | dry", ""]
    assert found.texts == ["dry , wet", "degeneration , ,"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It is Wet macular\n degeneration.", 1),
        ("wet, or dry", -1),
        ("This is not wet; it is dry", -1),
        ("Wet! So wet.", 2),
        ("wet macular degeneration, which is wet", -1),
        ("wet macular", -1),
        ("the MACULAR", 0),
        ("wetness of the dryer", -1),
        ("", -1),
    ],
)
def test_the_one_name_that_is_said_as_whole_words_and_not_inside_of_another_is_found(text: str, wanted: int) -> None:
    assert find(text, [words(name) for name in CLASSES]) == wanted


@pytest.mark.parametrize(
    ("classes", "template", "sentence"),
    [
        (("wet",), "Answer:", r"must hold \{text\} once.*, not 0 times"),
        (("wet",), "{text} {text}:", "not 2 times"),
        (("wet",), "{text} {class}:", r"holds \{class\}, for which nothing is put; did you mean 'classes'\?"),
        (("wet",), "{text} { classes }:", r"holds \{ classes \}, for which nothing is put"),
        (("wet",), "{texts} {classes}:", r"holds \{texts\}, .*; did you mean 'text'\?"),
        (("wet",), "Text:\n{text}", r"must go on behind \{text\} and not end with a space"),
        (("wet",), "{text} answer: ", "not end with a space"),
        (("wet",), "Text: {text}\nAnswer:", r"must not have a space right before \{text\}"),
        (("a_b", "c_d"), "{text}:", "the classes 'a_b' and 'c_d' are the same to the language model"),
        (("wet_dry", "wet dry"), "{text}:", "the classes 'wet_dry' and 'wet dry' are the same"),
        ((" ", "wet"), "{text}:", "the class name '' cannot be told from the end of 'fusion.prompt'"),
        (("_".join(["wet"] * (LONGEST + 1)), "dry"), "{text}:", "has 33 tokens, at most 32 are possible"),
    ],
)
def test_what_cannot_be_asked_is_refused(classes: tuple[str, ...], template: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        wording(classes, template)


def test_a_tokenizer_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "end_id", None)
    with pytest.raises(UserError, match="no end-of-text token"):
        wording()
