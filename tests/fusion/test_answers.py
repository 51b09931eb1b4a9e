"""Names scored together are scored as one by one by transformers' own model; what is written; padding; bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import MLLAMA, SPECS, Words, pool_for, problem
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration

from fusionbench.adapt.views import Views
from fusionbench.encoders.base import Tokens
from fusionbench.encoders.mllama import Mllama
from fusionbench.encoders.vision_language import Memory, VisionLanguage
from fusionbench.errors import UserError
from fusionbench.fusion.answers import Answering, unwritten
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.fusion.question import language_model, load_tokenizer, open_memory, picture_and_text
from fusionbench.fusion.wording import Prompt
from fusionbench.types import ModalitySpec, Problem

NAMES = ("macular", "wet_macular_degeneration", "wet", "dry")
MADE = Problem({"picture": SPECS["picture"], "report": SPECS["report"]}, NAMES)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TEXTS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [9, 0, 0, 0]])
ALL = torch.ones(3, dtype=torch.bool)


def asking(made: Problem = MADE, **options: Any) -> Answering:
    given = {"prompt": "macular\n{text} wet:", "decode": "likelihood", "max_new_tokens": 4}
    return Answering(made, Words(), **{**given, **options}).eval()


@pytest.fixture
def theirs() -> Any:
    """Return transformers' own model with open gates."""
    torch.manual_seed(0)
    made = MllamaForConditionalGeneration(MllamaConfig(**copy.deepcopy(MLLAMA)))
    made.set_attn_implementation("eager")
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return made.eval()


@pytest.fixture
def ours(theirs: Any) -> Mllama:
    """Return the same model as an encoder."""
    made = Mllama(ModalitySpec("text"), weights="random", config=MLLAMA, normalize="clip").eval()
    made.net.load_state_dict(theirs.state_dict())
    return made


def alone(theirs: Any, ids: list[int], picture_CHW: Tensor) -> Tensor:
    """Return the logits (N, V) that transformers' own forward gives one text without padding and its picture."""
    tiles = torch.zeros(1, 1, 4, *picture_CHW.shape)
    tiles[0, 0, 0] = picture_CHW
    first = torch.tensor([1, 0, 0, 0])
    out: Tensor = theirs(
        input_ids=torch.tensor([ids]),
        pixel_values=tiles,
        aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long),
        aspect_ratio_mask=first.expand(1, 1, 4),
        cross_attention_mask=first.expand(1, len(ids), 1, 4),
        use_cache=False,
    ).logits
    return out[0]


def prompts() -> list[list[int]]:
    """Return each case's prompt as it reads without padding."""
    before, after = Words().spelled("macular"), Words().spelled("wet:")
    return [[*before, *[i for i in row if i], *after] for row in TEXTS.tolist()]


@torch.no_grad()
def test_all_names_at_once_are_scored_as_one_by_one_by_transformers(theirs: Any, ours: Mllama) -> None:
    asked, pictures = asking(), torch.randn(3, 3, 16, 16)
    memories = dict.fromkeys(ours.cross_layers, open_memory(ours.see(pictures), None, 3))
    found = asked(ours, asked.wording.prompt(TEXTS, ALL), memories).logits
    for row, prompt in enumerate(prompts()):
        for k, name in enumerate(NAMES):
            answer = [*Words().spelled(name.replace("_", " ")), Words.end_id]
            logits = alone(theirs, [*prompt, *answer], pictures[row])[len(prompt) - 1 : -1].log_softmax(dim=-1)
            wanted = logits[torch.arange(len(answer)), torch.tensor(answer)].mean()
            torch.testing.assert_close(found[row, k], wanted, **CLOSE)


@torch.no_grad()
def test_what_is_written_is_what_transformers_writes_greedily(theirs: Any, ours: Mllama) -> None:
    asked, pictures, told = asking(decode="generate"), torch.randn(3, 3, 16, 16), []
    asked.wording.read = told.append
    memories = dict.fromkeys(ours.cross_layers, open_memory(ours.see(pictures), None, 3))
    asked.write(ours, asked.wording.prompt(TEXTS, ALL), memories)
    for row, prompt in enumerate(prompts()):
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(alone(theirs, ids, pictures[row])[-1].argmax()))
        assert told[0][row].tolist() == ids[len(prompt) :]


@torch.no_grad()
def test_a_score_depends_neither_on_padding_nor_on_other_names(ours: Mllama) -> None:
    memories = dict.fromkeys(ours.cross_layers, Memory(torch.randn(3, 5, 32)))
    asked = asking()
    whole = asked(ours, asked.wording.prompt(TEXTS, ALL), memories, [1, 3])
    longer = asked.wording.prompt(torch.cat([TEXTS, torch.zeros_like(TEXTS)], dim=1), ALL)
    padded = asked(ours, longer, memories, [1, 3])
    torch.testing.assert_close(padded.logits, whole.logits, **CLOSE)
    fewer = asking(Problem(MADE.modalities, NAMES[1:3]))
    part = fewer(ours, fewer.wording.prompt(TEXTS, ALL), memories, [1, 3])
    torch.testing.assert_close(part.logits, whole.logits[:, 1:3], **CLOSE)
    assert whole.summaries.keys() == {1, 3}
    for index in (1, 3):
        torch.testing.assert_close(padded.summaries[index], whole.summaries[index], **CLOSE)
        torch.testing.assert_close(part.summaries[index], whole.summaries[index], **CLOSE)


@torch.no_grad()
def test_an_absent_text_leaves_its_place_empty(ours: Mllama) -> None:
    asked, memories = asking(), dict.fromkeys(ours.cross_layers, Memory(torch.randn(3, 5, 32)))
    absent = asked(ours, asked.wording.prompt(TEXTS, ~ALL), memories).logits
    empty = asked(ours, asked.wording.prompt(torch.zeros(3, 0, dtype=torch.long), ALL), memories).logits
    torch.testing.assert_close(absent, empty, **CLOSE)


def test_without_any_word_before_an_absent_text_all_is_finite(ours: Mllama) -> None:
    asked = asking(prompt="{text} wet:")
    assert asked(ours, asked.wording.prompt(TEXTS, ~ALL), {}).logits.isfinite().all()


class Scripted(VisionLanguage):
    """A decoder without layers that writes the token after the last one's in a script."""

    cross_layers, depth, width = (), 0, 1

    def __init__(self, script: dict[int, int]) -> None:
        super().__init__(ModalitySpec("text"))
        self.script = script

    def embed(self, inputs: Tensor) -> Tokens:
        return Tokens(inputs[..., None].float())

    def see(self, images_BCHW: Tensor) -> Tensor:
        raise AssertionError

    def decoder_layer(self, *given: Any) -> Tensor:
        raise AssertionError

    def pool(self, tokens: Tokens) -> Tensor:
        raise AssertionError

    def vocabulary(self, values_BND: Tensor) -> Tensor:
        following = torch.tensor([[self.script.get(int(i), 0) for i in row] for row in values_BND[..., 0]])
        return torch.nn.functional.one_hot(following, 20).float()


def test_the_written_name_is_the_answer_and_none_is_minus_one() -> None:
    wet, macular, degeneration, dry = (Words().spelled(w)[0] for w in ("wet", "macular", "degeneration", "dry"))
    script = Scripted({15: wet, wet: macular, macular: degeneration, degeneration: 2, 16: 1, 17: dry, dry: 2, 2: wet})
    asked = asking(decode="generate", max_new_tokens=6)
    ids = torch.tensor([[15], [16], [17]])
    prompt = Prompt(ids, torch.ones_like(ids, dtype=torch.bool))
    found = asked.answers(script, prompt, {})
    assert found.classes.tolist() == [1, -1, 3]
    assert found.named == ["wet_macular_degeneration", "", "dry"]
    assert found.texts[0::2] == ["wet macular degeneration", "dry"]
    assert len(found.texts[1].split()) == 6
    assert asked.train().answers(script, prompt, {}) is None
    assert asking().answers(script, prompt, {}) is None


def test_a_network_can_be_kept_from_writing_for_a_while() -> None:
    wet = Words().spelled("wet")[0]
    network, ids = torch.nn.ModuleList([asking(decode="generate"), asking()]), torch.tensor([[15]])
    script, prompt = Scripted({15: wet, wet: 2}), Prompt(ids, torch.ones_like(ids, dtype=torch.bool))
    with unwritten(network):
        assert [part.answers(script, prompt, {}) for part in network] == [None, None]
    assert network[0].answers(script, prompt, {}).classes.tolist() == [2]
    assert network[1].answers(script, prompt, {}) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_true_answer_alone(smoothing: float) -> None:
    logits, target = torch.tensor([[-1.0, -2.0, -3.0, -9.0], [-4.0, -5.0, -6.0, -9.0]]), torch.tensor([2, 0])
    found = asking().loss(logits, target, CrossEntropy(label_smoothing=smoothing))
    torch.testing.assert_close(found, torch.tensor((3.0 + 4.0) / 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_weigh_the_answers(smoothing: float) -> None:
    logits, target = torch.tensor([[-1.0, -2.0, -3.0, -9.0], [-4.0, -5.0, -6.0, -9.0]]), torch.tensor([2, 0])
    found = asking().loss(logits, target, CrossEntropy(torch.tensor([0.5, 1.0, 2.0, 1.0]), smoothing))
    torch.testing.assert_close(found, torch.tensor((2 * 3.0 + 0.5 * 4.0) / 2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"decode": "genrate"}, "'fusion.decode' cannot be 'genrate'; did you mean 'generate'"),
        ({"max_new_tokens": 0}, "'fusion.max_new_tokens' must be at least 1"),
        ({"made": problem(("picture", "report"), multilabel=True), "decode": "generate"}, "names one class"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        asking(**options)


def test_other_modalities_and_encoders_are_refused() -> None:
    assert picture_and_text(problem(("report", "scan")), "mllm") == ("scan", "report")
    with pytest.raises(UserError, match=r"one of texts, not picture \(image\), record \(table\)"):
        picture_and_text(problem(("picture", "record")), "mllm")
    with pytest.raises(UserError, match="modality 'report' needs a language model"):
        load_tokenizer(pool_for("concat", MADE), "report")


def test_a_tuning_method_around_the_layers_is_refused() -> None:
    views: Views = pool_for("mllm", MADE, "frozen").views({"report": "report"})
    views.encoder("report").around = torch.nn.Identity()
    with pytest.raises(UserError, match="works around an encoder's layers"):
        language_model(views, "report")
