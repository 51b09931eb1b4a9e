"""The vision-language model alone: pictures and texts that are missing, several pictures, what is trained, options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import batch, perturb, pool_for, problem, step, strategy, trained

from fusionbench import inference
from fusionbench.adapt.views import EncoderPool
from fusionbench.errors import UserError
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.fusion.mllm import MLLM
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.task import FusionTask
from fusionbench.types import ModalitySpec, Problem

MADE = problem(("picture", "report"))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def mllm(encoder: str = "llama_vision", method: str = "frozen", made: Problem = MADE, **options: Any) -> MLLM:
    made_of = pool_for("mllm", made, method, {"text": encoder})
    out = strategy("mllm", made, made_of, **options).eval()
    assert isinstance(out, MLLM)
    return perturb(out)


@pytest.mark.parametrize("encoder", ["llama_vision", "mllama"])
def test_an_absent_picture_is_as_if_no_layer_read_any(encoder: str) -> None:
    network, cases = mllm(encoder, "full"), batch(MADE, 2, torch.tensor([[False, True], [True, True]]))
    found = network(cases.inputs, cases.present).logits
    reader = network.views.encoder("report")
    prompt = network.answering.wording.prompt(cases.inputs["report"], cases.present[:, 1])
    blind = network.answering(reader, prompt, {}).logits
    torch.testing.assert_close(found[0], blind[0], **CLOSE)
    assert (found[1] - blind[1]).abs().max() > 1e-4


def test_a_picture_shown_twice_is_the_picture() -> None:
    twice = Problem({**MADE.modalities, "picture": ModalitySpec("slices", size=32, instances=2)}, MADE.classes)
    one, two = mllm(), mllm(made=twice)
    two.load_state_dict(one.state_dict())
    cases = batch(MADE)
    inputs = {**cases.inputs, "picture": cases.inputs["picture"].expand(-1, 2, -1, -1, -1)}
    wanted = one(cases.inputs, cases.present).logits
    torch.testing.assert_close(two(inputs, cases.present).logits, wanted, **CLOSE)
    inputs["picture"] = torch.cat([cases.inputs["picture"], torch.randn(3, 1, 3, 32, 32)], dim=1)
    assert (two(inputs, cases.present).logits - wanted).abs().max() > 1e-4


def test_where_all_cases_are_complete_nothing_is_closed() -> None:
    complete = Problem(MADE.modalities, MADE.classes, complete=True)
    one, other = mllm(), mllm(made=complete)
    other.load_state_dict(one.state_dict())
    cases = batch(MADE)
    torch.testing.assert_close(*(n(cases.inputs, cases.present).logits for n in (one, other)), **CLOSE)


def test_the_picture_has_no_encoder_and_the_language_model_is_all_there_is() -> None:
    source = pool_for("mllm", MADE)
    source.nodes = {"report": source.nodes["report"]}
    network = MLLM(MADE, source)
    assert set(network.views.address) == {"report"}
    assert all(name.startswith("views.") for name, _ in network.named_parameters())
    assert network.feature_views == ()


def test_with_several_classes_to_a_case_the_scale_and_bias_of_each_are_learned() -> None:
    network = mllm(made=problem(("picture", "report"), multilabel=True))
    cases = batch(network.problem)
    output, losses = step(network, cases)
    assert set(losses) == {"answer"}
    assert {"answering.scale", "answering.bias"} <= {name for name, _ in trained(network)}
    with torch.no_grad():
        network.answering.scale.fill_(2.0)
        network.answering.bias.fill_(3.0)
        plain = mllm(made=MADE)
        plain.load_state_dict(network.state_dict(), strict=False)
        wanted = 2 * plain(cases.inputs, cases.present).logits + 3
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, wanted, **CLOSE)
    assert output.answers is None


def test_it_writes_in_evaluation_alone() -> None:
    network, cases = mllm(decode="generate", max_new_tokens=2), batch(MADE)
    answers = network(cases.inputs, cases.present).answers
    assert answers.classes.shape == (3,)
    assert answers.classes.dtype == torch.int64
    assert len(answers.named) == len(answers.texts) == 3
    assert all(len(text.split()) <= 2 for text in answers.texts)
    assert network.train()(cases.inputs, cases.present).answers is None


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 1.0, 2.0])])
def test_the_loss_of_validation_is_the_one_that_is_trained(weight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, cases, logged = mllm(), batch(MADE), {}
    task = FusionTask(MADE, lambda: network, sgd, constant, CrossEntropy(weight))
    task.configure_model()
    monkeypatch.setattr(FusionTask, "trainer", SimpleNamespace(sanity_checking=False))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: None)
    monkeypatch.setattr(task, "log", logged.__setitem__)
    task.on_validation_epoch_start()
    task.validation_step(cases, 0)
    task.on_validation_epoch_end()
    trained_loss = network.losses(network(cases.inputs, cases.present), cases, task.criterion)
    torch.testing.assert_close(logged["val/loss"], trained_loss["answer"])


class Held(list):
    """One case, as a dataset of batches."""

    rows = slice(None)

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(0)


class Task:
    """A network as a task has it."""

    def __init__(self, network: Any) -> None:
        self.strategy = network

    def __call__(self, cases: Any) -> Any:
        return self.strategy(cases.inputs, cases.present)


def test_the_cost_of_a_case_is_without_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "Cases", Held)
    monkeypatch.setattr(inference, "collate", lambda pad_id: lambda cases: cases[0])
    case = batch(MADE, 1)
    data = SimpleNamespace(present=case.present.numpy(), pad_id=0)
    source: Any = SimpleNamespace(eval_dataloader=lambda split: SimpleNamespace(dataset=Held([case])), data=data)
    writing = mllm(decode="generate", max_new_tokens=2)
    tasks: list[Any] = [Task(network) for network in (mllm(), writing)]
    plain, written = (inference.gflops_per_case(task, source) for task in tasks)
    assert written == plain > 0
    assert writing.answering.writes


def test_encoders_and_prompts_of_another_kind_are_refused() -> None:
    other = pool_for("concat", MADE)
    with pytest.raises(UserError, match="modality 'report' needs a language model that reads pictures"):
        MLLM(MADE, EncoderPool(MADE.modalities, other.nodes, other.adaptation))
    with pytest.raises(UserError, match=r"must hold \{text\} once"):
        mllm(prompt="What is it?")
