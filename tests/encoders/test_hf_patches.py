"""Image patches through BERT's layers: equations, a stem for each view, and the parts of the text model that it has."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import norm
from tiny import BERT, perturb

from fusionbench.adapt.full import Full
from fusionbench.adapt.lora import LoRA
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.hf_patches import HFPatches
from fusionbench.encoders.hf_text import HFText
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

OPTIONS = {"weights": "random", "config": BERT, "patch": 8}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def encoder(size: int = 32, **options: object) -> HFPatches:
    return perturb(HFPatches(ModalitySpec("image", size=size), **{**OPTIONS, **options})).eval()


def test_tokens_are_normed_patches_with_positions() -> None:
    made, picture = encoder(), torch.randn(3, 32, 32)
    stem = made.stem.each[0]
    tokens = made.embed(picture[None]).values[0]
    assert tokens.shape == (made.sequence, made.width) == (16, 32)
    for row in range(4):
        for column in range(4):
            patch = picture[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            raw = torch.stack([(kernel * patch).sum() for kernel in stem.conv.weight]) + stem.conv.bias
            place = 4 * row + column
            torch.testing.assert_close(tokens[place], norm(raw, stem.norm) + stem.position[0, place], **CLOSE)


def test_layers_are_the_text_models_first() -> None:
    config = {**BERT, "num_hidden_layers": 3}
    made = encoder(config=config)
    assert (made.depth, encoder(config=config, layers=None).depth) == (2, 3)
    text = HFText(ModalitySpec("text"), weights="random", config=config).eval()
    made.layers.load_state_dict(text.net.encoder.layer[:2].state_dict())
    values = torch.randn(2, 5, 32)
    wanted = values
    for layer in text.net.encoder.layer[:2]:
        wanted = layer(wanted)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    torch.testing.assert_close(made.layer(1, made.layer(0, values, None), None), wanted)
    assert not any("embeddings" in name for name, _ in made.named_parameters())


def test_the_vector_is_the_mean_or_the_first_patch() -> None:
    picture = torch.randn(2, 3, 32, 32)
    for pool in ("mean", "first"):
        made = encoder(pool=pool)
        tokens = made.encode(made.embed(picture))
        wanted = tokens.values.mean(dim=1) if pool == "mean" else tokens.values[:, 0]
        torch.testing.assert_close(made.pool(tokens), wanted)


def test_a_frozen_base_is_shared_and_each_view_trains_a_stem_of_its_own() -> None:
    specs = {"front": ModalitySpec("image", size=32), "side": ModalitySpec("image", size=20)}
    pool = EncoderPool(specs, dict.fromkeys(specs, (HFPatches, OPTIONS)), LoRA())
    views = pool.views({name: name for name in specs})
    assert len(views.backbones) == 1
    stems = views.encoder("front").stem.each
    assert [stem.count for stem in stems] == [16, 9]
    inputs = {"front": torch.randn(2, 3, 32, 32), "side": torch.randn(2, 3, 20, 20)}
    pooled = views.pool(views.features(inputs))
    pooled["side"].sum().backward()
    assert stems[1].conv.weight.grad.any()
    assert stems[0].conv.weight.grad is None
    assert any(key.startswith("stem.") for key in views.adapter("side"))


@pytest.mark.parametrize(("sizes", "length"), [((32, 32), 16), ((32, 20), None), ((20, 32), None)])
def test_the_sequence_has_a_length_if_all_views_agree(sizes: tuple[int, int], length: int | None) -> None:
    made = encoder()
    made.furnish([ModalitySpec("image", size=size) for size in sizes])
    assert made.sequence == length


def test_with_full_tuning_every_view_has_its_own_base() -> None:
    specs = {"front": ModalitySpec("image", size=32), "side": ModalitySpec("image", size=32)}
    views = EncoderPool(specs, dict.fromkeys(specs, (HFPatches, OPTIONS)), Full()).views({n: n for n in specs})
    assert len(views.backbones) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 3}, "'encoder.layers' is 3, but the model has 2: give fewer, or null for all"),
        ({"layers": 0}, "'encoder.layers' must be at least 1, not 0"),
        ({"patch": 0}, "'encoder.patch' must be at least 1, not 0"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as caught:
        encoder(**options)
    assert str(caught.value) == said
