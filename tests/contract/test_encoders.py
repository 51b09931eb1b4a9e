"""What every encoder must pass, and every tuning method on every encoder; both are found in their folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import SPECS, adaptation, batch, encoder_node, key_lengths, perturb, problem, trained
from torch import Tensor, nn

from fusionbench import registry
from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.views import EncoderPool, Views, trained_base
from fusionbench.encoders.base import Encoder
from fusionbench.encoders.vision_language import Memory, VisionLanguage
from fusionbench.errors import UserError
from fusionbench.files import write_tensors
from fusionbench.layers.frozen import trained_state

ENCODERS = registry.names("encoder")
METHODS = registry.names("adapt")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=ENCODERS)
def name(request: pytest.FixtureRequest) -> str:
    """Go through the encoders."""
    return str(request.param)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Go through the tuning methods."""
    return str(request.param)


def modality(name: str) -> str:
    """Return a modality of ``SPECS`` that an encoder reads."""
    kinds = registry.describe("encoder", name).constants.get("kinds", ("image", "slices"))
    return next(m for m, spec in SPECS.items() if spec.kind in kinds)


def build(name: str) -> tuple[Encoder, Tensor]:
    """Return an encoder in evaluation mode and four inputs, (B, C, H, W), (B, L) or (B, F)."""
    read = modality(name)
    kind, options = encoder_node(name)
    value = batch(problem((read,)), 4).inputs[read]
    encoder = perturb(kind(SPECS[read], **options)).eval()
    return encoder, value.flatten(0, 1) if SPECS[read].is_image else value


def views(name: str, how: Adaptation, only_tokens: bool = False) -> tuple[Views, dict[str, Tensor]]:
    """Return two views of an encoder under a tuning method, and inputs for each."""
    read = modality(name)
    made = problem((read,))
    kind, options = encoder_node(name)
    more = {"segment": True} if name == "unet" else {}
    pool = EncoderPool(made.modalities, {read: (kind, {**options, **(more if only_tokens else {})})}, how)
    inputs = {view: build(name)[1] for view in ("primary/x", "auxiliary/x")}
    given = dict.fromkeys(inputs, read)
    return (pool.token_views(given) if only_tokens else pool.views(given)).eval(), inputs


def run(made: Views, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each view's vector."""
    return made.pool(made.encode(made.embed(inputs)))


def everything(encoder: Encoder, inputs: Tensor, pooled: Tensor) -> Tensor:
    """Return a loss of all that an encoder gives: its vector and, where it sees, the words that follow on a picture."""
    loss = pooled.square().sum()
    if not isinstance(encoder, VisionLanguage):
        return loss
    tokens = encoder.embed(inputs)
    values, (rows, count) = tokens.values, inputs.shape
    mask = torch.ones(rows, count, count, dtype=torch.bool).tril() & tokens.mask[:, None]
    memory = Memory(encoder.see(torch.randn(rows, 3, 32, 32)))
    for index in range(encoder.depth):
        values = encoder.run_layer(index, values, mask, torch.arange(count).expand(rows, -1), memory)
    return loss + encoder.vocabulary(values).square().sum()


def test_shapes_are_those_that_it_tells(name: str) -> None:
    encoder, inputs = build(name)
    tokens = encoder.embed(inputs)
    assert tokens.values.ndim == 3
    assert tokens.values.shape[::2] == (4, encoder.width)
    assert tokens.mask is None or tokens.mask.shape == tokens.values.shape[:2]
    encoded = encoder.encode(tokens)
    assert encoded.values.shape == tokens.values.shape
    assert encoder.pool(encoded).shape == (4, encoder.width)


def test_layers_run_in_parts_as_in_one(name: str) -> None:
    encoder, inputs = build(name)
    tokens = encoder.embed(inputs)
    middle = encoder.depth // 2
    parts = encoder.encode(encoder.encode(tokens, 0, middle), middle)
    assert torch.equal(encoder.pool(parts), encoder.pool(encoder.encode(tokens)))


def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    encoder, inputs = build(name)
    whole = encoder.pool(encoder.encode(encoder.embed(inputs)))
    for row in range(4):
        alone = encoder.pool(encoder.encode(encoder.embed(inputs[row : row + 1])))
        torch.testing.assert_close(alone[0], whole[row], **CLOSE)


def test_an_appended_token_acts_unless_it_is_masked(name: str) -> None:
    encoder, inputs = build(name)
    if not encoder.takes_tokens:
        pytest.skip("takes no tokens")
    tokens = encoder.embed(inputs)
    extra = torch.randn(4, 2, encoder.width)
    plain = encoder.pool(encoder.encode(tokens))
    open_ = encoder.pool(encoder.encode(tokens.append(extra)))
    masked = encoder.pool(encoder.encode(tokens.append(extra, torch.zeros(4, 2, dtype=torch.bool))))
    assert (open_ - plain).abs().amax(dim=1).min() > 1e-4
    torch.testing.assert_close(masked, plain, **CLOSE)


def test_one_key_is_no_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, inputs = build(name)
    if not encoder.takes_tokens:
        pytest.skip("takes no tokens")
    lengths = key_lengths(monkeypatch, encoder)
    tokens = encoder.encode(encoder.embed(inputs))
    assert len(lengths) == encoder.depth, "it attends by other means than torch's, which this test cannot see"
    assert set(lengths) == {tokens.values.shape[1]}
    assert tokens.values.shape[1] > 1


def test_every_layer_and_weight_matters(name: str) -> None:
    encoder, inputs = build(name)
    everything(encoder, inputs, encoder.pool(encoder.encode(encoder.embed(inputs)))).backward()
    for parameter, value in trained(encoder):
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.any(), parameter


def test_sites_are_linear_layers_and_belong_to_one_site_each(name: str) -> None:
    encoder, _ = build(name)
    found = [layer for layers in encoder.linear_sites().values() for layer in layers]
    assert len(found) == len(set(found))
    assert all(isinstance(encoder.get_submodule(layer), nn.Linear) for layer in found)
    depths = (0, encoder.depth, encoder.depth - len(getattr(encoder, "cross_layers", ())))
    assert all(len(layers) in depths for layers in encoder.linear_sites().values())


def test_the_state_survives_a_round_trip(name: str) -> None:
    (first, inputs), (second, _) = build(name), build(name)
    second.load_state_dict(first.state_dict())
    a, b = (encoder.pool(encoder.encode(encoder.embed(inputs))) for encoder in (first, second))
    assert torch.equal(a, b)


def test_random_weights_are_never_silent(name: str) -> None:
    component = registry.describe("encoder", name)
    option = component.options["weights"]
    assert option.required or (component.constants.get("from_scratch") and option.default == "random")


def test_weights_that_are_not_there_are_refused_in_a_sentence(name: str) -> None:
    kind, options = encoder_node(name)
    with pytest.raises(UserError) as caught:
        kind(SPECS[modality(name)], **{**options, "weights": "nowhere/weights.safetensors"})
    assert "\n" not in str(caught.value)


def fits(name: str, method: str, only_tokens: bool = False) -> tuple[Views, dict[str, Tensor]]:
    """Build two views; a method may refuse an encoder without its sites, in a sentence, but never a ViT."""
    try:
        return views(name, adaptation(method), only_tokens)
    except UserError as error:
        if name == "timm_vit" or "\n" in str(error):
            raise
        pytest.skip(str(error))


def test_a_tuning_method_starts_from_the_encoder_itself(name: str, method: str) -> None:
    made, inputs = fits(name, method)
    if not adaptation(method).starts_as_frozen:
        pytest.skip("the class says that it starts elsewhere")
    bare, _ = build(name)
    state = {key.replace(".base.", "."): v for key, v in made.encoder("primary/x").state_dict().items()}
    bare.load_state_dict({key: state[key] for key in bare.state_dict()})
    wanted = bare.pool(bare.encode(bare.embed(inputs["primary/x"])))
    torch.testing.assert_close(run(made, inputs)["primary/x"], wanted, **CLOSE)


def test_what_a_tuning_method_trains_gets_gradients_and_the_rest_none(name: str, method: str) -> None:
    made, inputs = fits(name, method)
    with torch.no_grad():  # the frozen base too: timm's random CNNs have gains of zero, before which all is dead
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    out = run(made, inputs)
    if not any(True for _ in trained(made)):
        assert not any(value.requires_grad for value in out.values())
        return
    losses = []
    for view, value in out.items():
        with made.encoder(view).selector.select((made.address[view][1],)):
            losses.append(everything(made.encoder(view), inputs[view], value))
    sum(losses).backward()
    for parameter, value in made.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, parameter
            assert value.grad.isfinite().all(), parameter
            assert value.grad.any(), parameter
        else:
            assert value.grad is None, parameter


def test_where_tokens_alone_are_asked_for_all_that_is_trained_makes_them(name: str, method: str) -> None:
    made, inputs = fits(name, method, only_tokens=True)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    found = run(made, inputs)
    if any(True for _ in trained(made)):
        sum(value.square().sum() for value in found.values()).backward()
    assert [parameter for parameter, value in trained(made) if value.grad is None or not value.grad.any()] == []


def test_the_state_of_tokens_alone_goes_into_a_whole_encoder_and_back(name: str, method: str) -> None:
    (alone, inputs), (whole, _) = fits(name, method, only_tokens=True), fits(name, method)
    with torch.no_grad():
        own = dict(alone.named_parameters())
        for parameter, value in whole.named_parameters():
            value.copy_(own.get(parameter, value))
    perturb(alone)
    for source, target in ((alone, whole), (perturb(whole), alone)):
        for view in inputs:
            target.load_adapter(view, source.adapter(view))
        a, b = run(source, inputs), run(target, inputs)
        assert all(torch.equal(a[view], b[view]) for view in inputs)


def test_a_frozen_base_is_held_once_and_a_trained_one_by_each_view(name: str, method: str) -> None:
    made, _ = fits(name, method)
    trains = adaptation(method).trains_base or registry.describe("encoder", name).constants.get("from_scratch", False)
    assert len(made.backbones) == (2 if trains else 1)


def test_adapters_survive_a_round_trip_through_safetensors(name: str, method: str, tmp_path: Path) -> None:
    made, inputs = fits(name, method)
    perturb(made)
    before = run(made, inputs)
    whole = load_file(write_tensors(tmp_path / "all", {f"views.{k}": v for k, v in trained_state(made).items()}))
    paths = {path.stem: path for path in made.save_adapters(tmp_path)}
    perturb(made)
    for view in inputs:
        path = paths.get(view.replace("/", "_"))
        state = trained_base(whole, view) if path is None else load_file(path)
        if state:
            made.load_adapter(view, state)
    shares = len(made.backbones) == 1
    assert len(paths) == (2 if shares and any(True for _ in trained(made)) else 0), "a trained base is saved once"
    after = run(made, inputs)
    assert all(torch.equal(before[view], after[view]) for view in inputs)
