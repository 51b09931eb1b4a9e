"""Small random encoders, problems and batches, for tests of whatever is built on them.

A new encoder that needs more than ``weights`` gets its smallest options in ``ENCODERS``; all else is found by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from fusionbench import registry
from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.base import Encoder
from fusionbench.fusion.base import Strategy, UnimodalState
from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.types import Batch, ModalitySpec, Output, Problem

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
MLLAMA = {
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 100,
        "max_position_embeddings": 64,
        "cross_attention_layers": [1, 3],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 32,
    },
}
ENCODERS: dict[str, dict[str, Any]] = {
    "timm_vit": {"model": "test_vit", "weights": "random"},
    "timm_cnn": {"model": "test_resnet", "weights": "random"},
    "hf_patches": {"weights": "random", "config": BERT, "patch": 8},
    "hf_text": {"weights": "random", "config": BERT},
    "llama": {"weights": "random", "config": LLAMA, "layers": (0, 1), "patch": 8},
    "llama_vision": {
        "weights": "random",
        "config": LLAMA,
        "layers": (0, 1, 2, 3),
        "vision": {"model": "test_vit", "weights": "random"},
    },
    "mllama": {"weights": "random", "config": MLLAMA},
    "unet": {"backbone": "tu-test_efficientnet", "weights": "random"},
    "table": {"width": 16, "depth": 2, "heads": 2},
}
SPECS = {
    "picture": ModalitySpec("image", size=32),
    "report": ModalitySpec("text"),
    "record": ModalitySpec("table", columns=("age", "size", "dose")),
    "scan": ModalitySpec("slices", size=32, instances=2),
}
M = TypeVar("M", bound=nn.Module)
READERS = {"image": "timm_vit", "slices": "timm_vit", "text": "hf_text", "table": "table"}


def encoder_node(name: str) -> tuple[type[Encoder], dict[str, Any]]:
    """Return an encoder's class and its smallest options, random weights included."""
    component = registry.describe("encoder", name)
    options = dict(ENCODERS.get(name, {}))
    missing = [o.name for o in component.options.values() if o.required and o.name not in {*options, "weights"}]
    assert not missing, f"give tiny values for {missing} of encoder '{name}' in tests/tiny.py"
    if "weights" in component.options:
        options["weights"] = "random"
    return component.load(), options


def adaptation(name: str) -> Adaptation:
    """Return a tuning method with its default options."""
    made: Adaptation = registry.describe("adapt", name).load()()
    return made


def problem(names: Sequence[str] = tuple(SPECS), classes: int = 3, multilabel: bool = False) -> Problem:
    """Return a problem on the named modalities of ``SPECS``, some of whose cases lack a modality."""
    return Problem({n: SPECS[n] for n in names}, tuple(f"class{k}" for k in range(classes)), multilabel)


def images(count: int, classes: int = 3, multilabel: bool = False, slices: int = 1, size: int = 32) -> Problem:
    """Return a problem on ``count`` image modalities."""
    spec = ModalitySpec("image" if slices == 1 else "slices", size=size, instances=slices)
    return Problem({f"image{m}": spec for m in range(count)}, tuple(f"class{k}" for k in range(classes)), multilabel)


def pool(made: Problem, method: str = "mor", readers: Mapping[str, str] | None = None) -> EncoderPool:
    """Return tiny encoders for a problem's modalities; ``readers`` maps a kind to an encoder's name."""
    by_kind = {**READERS, **(readers or {})}
    nodes = {name: encoder_node(by_kind[spec.kind]) for name, spec in made.modalities.items()}
    return EncoderPool(made.modalities, nodes, adaptation(method))


class Words:
    """A tokenizer of whole words and signs for language models that are asked; what it does not know is one token."""

    pad_id, unknown, end_id = 0, 1, 2
    known = (
        "class0",
        "class1",
        "class2",
        "class3",
        "macular",
        "wet",
        "dry",
        "degeneration",
        "retinopathy",
        ":",
        "?",
        ",",
    )

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each text."""
        return [self.spelled(text)[:max_length] or [self.pad_id] for text in texts]

    def spelled(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        found = re.findall(r"\w+|[^\w\s]", text)
        return [self.known.index(word) + 3 if word in self.known else self.unknown for word in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of token ids."""
        return " ".join(self.known[i - 3] if 3 <= i < 3 + len(self.known) else "other" for i in ids if i != self.end_id)


def speaking(node: tuple[type[Encoder], dict[str, Any]]) -> tuple[type[Encoder], dict[str, Any]]:
    """Give a language model's node the tokenizer ``Words``."""
    kind, options = node
    return type(kind.__name__, (kind,), {"load_tokenizer": classmethod(lambda cls, options: Words())}), options


def kinds_of(name: str) -> tuple[str, ...]:
    """Return the kinds of modality that a strategy takes."""
    about = registry.describe("fusion", name).constants
    named = (*about.get("encoders", {}), *about.get("unencoded", ()))
    return named if about.get("encoders") else tuple(READERS)


def pool_for(name: str, made: Problem, method: str = "mor", readers: Mapping[str, str] | None = None) -> EncoderPool:
    """Return tiny encoders of those that a strategy takes, those in ``readers`` where it takes them."""
    taken = registry.describe("fusion", name).constants.get("encoders", {})
    given = readers or {}
    source = pool(
        made,
        method,
        given
        if not taken
        else {kind: given[kind] if given.get(kind) in names else names[0] for kind, names in taken.items()},
    )
    asked = [m for m, spec in made.modalities.items() if spec.kind == "text" and "text" in taken]
    source.nodes = {**source.nodes, **{m: speaking(source.nodes[m]) for m in asked}}
    return source


def options_of(name: str, made: Problem, given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a strategy's options: one named ``modality`` is the first, whose default needs a single modality."""
    component = registry.describe("fusion", name)
    options = dict(given)
    if "modality" in component.options:
        options.setdefault("modality", next(iter(made.modalities)))
    missing = [o.name for o in component.options.values() if o.required and o.name not in options]
    assert not missing, f"say in tests/tiny.py how tests choose {missing} of fusion '{name}'"
    return options


def strategy(name: str, made: Problem, source: EncoderPool | None = None, **given: Any) -> Strategy:
    """Build a strategy whose adapters do something, with stage-1 states where it cannot do without."""
    source = pool_for(name, made) if source is None else source
    out: Strategy = registry.describe("fusion", name).load()(made, source, **options_of(name, made, given))
    if out.needs_unimodal:
        out.load_unimodal(stage_one(made, source))
    return perturb(out)


def stage_one(made: Problem, source: EncoderPool) -> dict[str, UnimodalState]:
    """Return what stage 1 would hand on, untrained; the modalities' training scores rise in their order."""
    states = {}
    for rank, name in enumerate(made.modalities):
        alone = registry.describe("fusion", "unimodal").load()(made, source, modality=name)
        perturb(alone)
        states[name] = UnimodalState(alone.views.adapter(name), alone.head.state_dict(), 0.5 + 0.1 * rank)
    return states


def perturb(module: M) -> M:
    """Add noise to what is trained: B of a LoRA and heads' biases start at zero and would hide a fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def batch(made: Problem, size: int = 3, present: Tensor | None = None) -> Batch:
    """Return random cases, all complete unless ``present`` (B, M) says otherwise; what is absent holds zeros."""
    if present is None:
        present = torch.ones(size, len(made.modalities), dtype=torch.bool)
    inputs = {}
    for index, (name, spec) in enumerate(made.modalities.items()):
        value = _random(spec, len(present))
        inputs[name] = value * present[:, index].reshape(-1, *[1] * (value.ndim - 1)).to(value.dtype)
    labels = torch.arange(len(present)) % len(made.classes)
    target = (torch.rand(len(present), len(made.classes)) > 0.5).float() if made.multilabel else labels
    ids = [str(i) for i in range(len(present))]
    return Batch(inputs, present, target, ids, ids, {})


def _random(spec: ModalitySpec, size: int) -> Tensor:
    if spec.is_image:
        return torch.randn(size, spec.instances, 3, spec.size, spec.size)
    if spec.kind == "table":
        return torch.randn(size, len(spec.columns))
    ids = torch.randint(1, BERT["vocab_size"], (size, 7))
    return ids * (torch.arange(7) < 7 - torch.arange(size)[:, None] % 3)


def criterion(made: Problem) -> CrossEntropy | BinaryCrossEntropy:
    """Return the loss that a problem asks for."""
    return BinaryCrossEntropy() if made.multilabel else CrossEntropy()


def step(made: Strategy, cases: Batch) -> tuple[Output, dict[str, Tensor]]:
    """Return a strategy's output and its named losses."""
    output = made(cases.inputs, cases.present)
    return output, made.losses(output, cases, criterion(made.problem))


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of all that is trained."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def key_lengths(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> list[int]:
    """Return a list that grows by the number of keys whenever the network attends, by torch's function or module."""
    attend, lengths = torch.nn.functional.scaled_dot_product_attention, []

    def noted(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lengths.append(key.shape[-2])
        return attend(query, key, *args, **kwargs)

    def note(module: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        key = kwargs["key"] if "key" in kwargs else args[1]
        lengths.append(key.shape[-2 if module.batch_first else 0])

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(note, with_kwargs=True)
    return lengths
