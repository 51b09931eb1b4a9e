"""One frozen backbone, many adapter sets: a strategy's encoders as named views.

With a frozen base, a modality's encoder is a view: the one backbone in memory plus that view's adapter set. Views of
one backbone whose token shapes agree go through it in one pass: the base's products run over all of them at once, the
adapters as one batched product over the view axis. Where shapes differ, or the base itself is trained, the same call
runs view by view, with equal results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fusionbench.adapt.base import Adaptation, adapter_state, all_is_frozen, load_adapter_state, own_modules
from fusionbench.adapt.feature_table import FeatureTable
from fusionbench.adapt.full import Full
from fusionbench.encoders.base import Encoder, Tokens
from fusionbench.encoders.identity import identity
from fusionbench.encoders.token_batches import join, split, token_shape
from fusionbench.files import write_tensors
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.per_view import PerView
from fusionbench.types import ModalitySpec

V = TypeVar("V", Tensor, Tokens)
_OWN, _SHARED = "own_", "shared_"


class EncoderPool:
    """Builds views; weights are read once for each distinct encoder node, whatever the number of modalities and roles.

    Args:
        modalities: What each modality is made of.
        nodes: Each modality's encoder class and options.
        adaptation: The tuning method.
        seed: Of whatever in a backbone starts at random. Each has a start of its own, which nothing else changes, so
            that it is the same alone and beside others, in every process, with checkpointing, wherever weights lie.
    """

    def __init__(
        self,
        modalities: Mapping[str, ModalitySpec],
        nodes: Mapping[str, tuple[type[Encoder], Mapping[str, Any]]],
        adaptation: Adaptation,
        seed: int = 0,
    ) -> None:
        self.modalities, self.nodes, self.adaptation, self.seed = modalities, nodes, adaptation, seed

    def views(self, modality_of: Mapping[str, str]) -> Views:
        """Build the views of one strategy, given as view name to modality."""
        groups: dict[str, list[str]] = {}
        for view, modality in modality_of.items():
            groups.setdefault(self._identity(view, modality), []).append(view)
        backbones: dict[str, Encoder] = {}
        methods: dict[str, Adaptation] = {}
        address: dict[str, tuple[str, int]] = {}
        identities: dict[str, str] = {}
        for number, (name, members) in enumerate(groups.items()):
            key = name if name.startswith(_OWN) else f"{_SHARED}{number}"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(hashlib.sha256(f"{self.seed} {name}".encode()).hexdigest()[:8], 16))
                backbones[key] = self._build([modality_of[view] for view in members])
            methods[key], identities[key] = self._method(modality_of[members[0]]), name
            address.update({view: (key, index) for index, view in enumerate(members)})
        return Views(backbones, address, methods, identities)

    def token_views(self, modality_of: Mapping[str, str]) -> Views:
        """Build the views of a strategy that asks for their tokens and vectors alone.

        What their encoders hold for others (a mask decoder, a language head, what reads pictures) is let go of, so that
        it is neither held nor saved, nor counted as trained.
        """
        made = self.views(modality_of)
        for view in made.address:
            made.encoder(view).keep_tokens()
        return made

    def _method(self, modality: str) -> Adaptation:
        return Full() if self.nodes[modality][0].from_scratch else self.adaptation

    def _identity(self, view: str, modality: str) -> str:
        """Say which backbone a view is of: its own if the base is trained, else that of its encoder node."""
        if self._method(modality).trains_base:
            return _own(view)
        return _SHARED + identity(*self.nodes[modality])

    def tune(self, layers: Adaptable, views: int) -> None:
        """Let the tuning method work on pretrained layers of a strategy's own, with ``views`` adapter sets."""
        self.adaptation.tune(layers, views)
        layers.exporters = [partial(self.adaptation.export, layers, view) for view in range(views)]

    def _build(self, modalities: Sequence[str]) -> Encoder:
        """Build the backbone of some views, given by their modalities; it saves memory if any node asks for that."""
        kind, options = max((self.nodes[m] for m in modalities), key=lambda node: bool(node[1].get("checkpointing")))
        specs = [self.modalities[name] for name in modalities]
        encoder = kind(specs[0], **options)
        self._method(modalities[0]).apply(encoder, len(specs))
        encoder.furnish(specs)
        return encoder


class Views(nn.Module):
    """Named views of one or more backbones.

    ``embed``, ``encode`` and ``pool`` take and return dicts by view name and may be called for any subset of the views.
    ``identities`` tells each backbone's class and options, where its key is only a short name for checkpoints.
    ``guests`` are modalities that a strategy has a view read too: the view, and the place of their modules (stems).
    """

    def __init__(
        self,
        backbones: Mapping[str, Encoder],
        address: Mapping[str, tuple[str, int]],
        methods: Mapping[str, Adaptation],
        identities: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict(backbones)
        self.address, self.methods, self.identities = dict(address), dict(methods), dict(identities)
        self.guests: dict[str, tuple[str, int]] = {}
        self.tables: dict[str, FeatureTable] = {}  # by view; put there for a run, no part of the network's state
        self.train()  # Lightning keeps the modes that it finds, and timm builds a frozen backbone in training mode

    def encoder(self, view: str) -> Encoder:
        """Return the backbone behind a view."""
        backbone = self.backbones[self.address[view][0]]
        assert isinstance(backbone, Encoder)
        return backbone

    def width(self, view: str) -> int:
        """Return D of a view's tokens."""
        return self.encoder(view).width

    def depth(self, view: str) -> int:
        """Return the number of a view's layers."""
        return self.encoder(view).depth

    def train(self, mode: bool = True) -> Views:
        """Keep frozen backbones in evaluation mode: no dropout, no running statistics."""
        super().train(mode)
        for backbone in self.backbones.values():
            if not self._is_trained(backbone):
                backbone.eval()
                for module in backbone.modules():
                    if isinstance(module, PerView):
                        module.training = mode  # for its dropout; what is frozen inside it stays as it is
        return self

    @staticmethod
    def _is_trained(backbone: nn.Module) -> bool:
        return all(p.requires_grad for p in backbone.parameters())

    def embed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Turn each view's input into the tokens that enter its first layer.

        Views of one backbone that are given the same tensor share the result, unless the embedding holds adapters.
        """
        done: dict[Hashable, Tokens] = {}
        out = {}
        for group in self._groups(inputs, lambda x: (tuple(x.shape), x.dtype)):
            if self.encoder(group[0]).embeds_by_view:
                out.update(self._embed_each(group, inputs))
                continue
            fresh = {id(inputs[view]): view for view in group}
            tokens = self.encoder(group[0]).embed(torch.cat([inputs[view] for view in fresh.values()]))
            for part, key in zip(split(tokens, len(fresh)), fresh, strict=True):
                done[self.address[group[0]][0], key] = part
            out.update({view: done[self.address[view][0], id(inputs[view])] for view in group})
        return out

    def _embed_each(self, group: Sequence[str], inputs: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Embed views whose embeddings differ, in one pass."""
        encoder = self.encoder(group[0])
        with encoder.selector.select(tuple(self.address[view][1] for view in group)):
            tokens = encoder.embed(torch.cat([inputs[view] for view in group]))
        return dict(zip(group, split(tokens, len(group)), strict=True))

    def encode(self, tokens: Mapping[str, Tokens], start: int = 0, stop: int | None = None) -> dict[str, Tokens]:
        """Run layers ``start`` to ``stop`` (default: the last) of each view, one pass for each backbone and shape."""
        out = {}
        for group in self._groups(tokens, token_shape):
            joined = join([tokens[view] for view in group])
            views = tuple(self.address[view][1] for view in group)
            encoded = self.encoder(group[0]).encode(joined, start, stop, views)
            out.update(dict(zip(group, split(encoded, len(group)), strict=True)))
        return out

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Return the tokens that leave each view's last layer: read where they are stored, else ``encode(embed(...))``.

        A strategy that puts no tokens of its own into a view should ask for this, since frozen backbones' features are
        computed once (``feature_store.py``).
        """
        found = self.stored(inputs)
        return {**found, **self.encode(self.embed({v: x for v, x in inputs.items() if v not in found}))}

    def stored(self, inputs: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Return the tokens that leave the last layer of those views all of whose inputs are in the feature store."""
        found = {view: self.tables[view].lookup(x) for view, x in inputs.items() if view in self.tables}
        return {view: tokens for view, tokens in found.items() if tokens is not None}

    @contextmanager
    def live(self) -> Iterator[None]:
        """Compute everything for a while, whatever is stored."""
        tables, self.tables = self.tables, {}
        try:
            yield
        finally:
            self.tables = tables

    def is_frozen(self, view: str) -> bool:
        """Whether what leaves a view's encoder depends on its input alone: it shares a frozen base as it is."""
        key, index = self.address[view]
        return key.startswith(_SHARED) and all_is_frozen(self.encoder(view), index)

    def pool(self, tokens: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Return each view's vector (B, D)."""
        pooled = {}
        for view, value in tokens.items():
            encoder = self.encoder(view)
            with encoder.selector.select((self.address[view][1],)):
                pooled[view] = encoder.pool(encoder.fold(value))
        return pooled

    def _groups(self, values: Mapping[str, V], shape: Callable[[V], Hashable]) -> list[list[str]]:
        """Return the views that can go through one backbone together, in the order of their adapter sets."""
        groups: dict[Hashable, list[str]] = {}
        for view in sorted(values, key=lambda v: self.address[v][1]):
            groups.setdefault((self.address[view][0], shape(values[view])), []).append(view)
        return list(groups.values())

    def _has_own_base(self, view: str) -> bool:
        """Whether the base is trained itself, so that a view has one of its own; a guest has its host's."""
        host = self.guests[view][0] if view in self.guests else view
        return self.address[host][0].startswith(_OWN)

    def adapter(self, view: str) -> dict[str, Tensor]:
        """Return a view's adapter set, or a guest's own modules."""
        if view in self.guests:
            return own_modules(self.encoder(self.guests[view][0]), self.guests[view][1])
        return adapter_state(self.encoder(view), self.address[view][1])

    def load_adapter(self, view: str, state: dict[str, Tensor]) -> None:
        """Put an adapter set into a view."""
        load_adapter_state(self.encoder(view), self.address[view][1], state)

    def save_adapters(self, folder: Path) -> list[Path]:
        """Write each view's adapter set, if it has one, as a safetensors file of its own, and return the files.

        A base that is trained itself is no adapter set: it is in the model's own file alone (``trained_base``). A
        library's method writes its set in that library's format too, into a folder of the view's name.
        """
        paths = []
        for view in (v for v in (*self.address, *self.guests) if not self._has_own_base(v)):
            state, path = self.adapter(view), folder / f"{view.replace('/', '_')}.safetensors"
            if state:
                paths.append(write_tensors(path, {k: v.contiguous().cpu() for k, v in state.items()}, {"view": view}))
            if state and (here := self.address.get(view)):
                self.methods[here[0]].export(self.encoder(view), here[1], path.with_suffix(""))
        return paths


def trained_base(state: Mapping[str, Tensor], view: str) -> dict[str, Tensor]:
    """Return, by the encoder's own names, the whole encoder of a view whose base was trained; empty where it was not.

    Args:
        state: Of a trained strategy, whose ``views`` hold the encoder.
        view: The view's name.
    """
    prefix = f"views.backbones.{_own(view)}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _own(view: str) -> str:
    """Return the key of a backbone that is one view's own."""
    return _OWN + view.replace("/", "_").replace(".", "_")
