"""Frozen features computed once: by content, the same as live, whichever run filled the store."""

import fcntl
from dataclasses import replace

import pytest
import torch
from program import THIRD_PARTY
from stored import SETTING, fit

from fusionbench import callbacks
from fusionbench.adapt import feature_store, feature_table
from fusionbench.adapt.feature_store import Part
from fusionbench.adapt.feature_table import Layout, TooLarge, compute, content_keys
from fusionbench.encoders.base import Tokens

pytestmark = THIRD_PARTY


def text_table(pad_id=9):
    """Store four texts of up to five tokens as what tells them apart: their ids."""
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 9, 9], [1, 9, 9, 9, 9], [9, 9, 9, 9, 9]])
    layout = Layout(5, pad_id)
    return compute(lambda x: Tokens(x[..., None].float(), x != pad_id), [ids[:3], ids[3:]], layout, 4)


def test_keys_are_two_sums_of_products_modulo_2_to_the_64():
    pictures = torch.randn(3, 2, 4, 4)
    layout = Layout(32)
    lanes = feature_table._factors(32, torch.device("cpu")).tolist()
    for picture, key in zip(pictures, content_keys(pictures, layout).tolist(), strict=True):
        words = picture.flatten().view(torch.int32).tolist()
        sums = [sum(w * f for w, f in zip(words, lane, strict=True)) % 2**64 for lane in lanes]
        assert [k % 2**64 for k in key] == sums
    assert all(factor % 2 for lane in lanes for factor in lane)


def test_the_smallest_change_of_a_picture_is_another_picture():
    picture = torch.randn(1, 3, 8, 8)
    other = picture.clone()
    other.view(torch.int32)[0, 2, 7, 7] ^= 1
    table = compute(lambda x: Tokens(x.flatten(1)[:, None]), [picture], Layout(192), 1)
    assert torch.equal(table.lookup(picture).values, picture.flatten(1)[:, None])
    assert table.lookup(other) is None
    assert table.lookup(torch.cat([picture, other])) is None, "one stranger, and the batch is computed"
    assert table.lookup(picture[..., :4]) is None


def test_a_text_is_the_same_however_far_it_is_padded():
    table = text_table()
    for length in (3, 4, 5):
        found = table.lookup(torch.tensor([[2, 7, 1, 9, 9], [1, 9, 9, 9, 9]])[:, :length])
        assert found.values[..., 0].tolist() == [[2, 7, 1, 9, 9][:length], [1, 9, 9, 9, 9][:length]]
        assert found.mask.tolist() == [[i < n for i in range(length)] for n in (3, 1)]
    assert table.lookup(torch.tensor([[2, 7, 1, 9, 9, 9]])) is None, "longer than any that was stored"
    assert table.lookup(torch.tensor([[2, 7]])) is None


def test_an_absent_text_is_found_at_any_length():
    table = text_table()
    for length in (1, 4):
        assert table.lookup(torch.zeros(2, length, dtype=torch.int64)).values.shape == (2, length, 1)


@pytest.mark.parametrize("name", ["photo", "notes"])
def test_stored_tokens_are_the_live_ones(ready, tmp_path, name):
    table, was_there = ready.table(tmp_path, name)
    assert not was_there
    views, count = ready.strategy.views, 0
    for split in ("train", "val", "test"):
        for batch in ready.source.eval_dataloader(split):
            rows = {name: ready.strategy.present_inputs(batch.inputs, batch.present)[name]}
            found, live = table.lookup(rows[name]), views.encode(views.embed(rows))[name]
            here = batch.present[:, ready.strategy.names.index(name)].repeat_interleave(
                len(rows[name]) // len(batch[1])
            )
            assert torch.equal(found.mask, live.mask) if name == "notes" else found.mask is None is live.mask
            torch.testing.assert_close(found.values[here], live.values[here], rtol=1e-5, atol=1e-5)
            count += len(batch.case_id)
    assert count == len(ready.source.table)


def test_a_table_is_read_again_and_a_damaged_one_is_filled_again(ready, tmp_path):
    first, _ = ready.table(tmp_path, "photo")
    again, was_there = ready.table(tmp_path, "photo")
    assert was_there
    (path,) = tmp_path.glob("photo-*.safetensors")
    content = path.read_bytes()
    path.unlink()  # what is mapped already stays as it is
    path.write_bytes(content[: len(content) // 2])
    refilled, was_there = ready.table(tmp_path, "photo")
    assert not was_there
    for table in (again, refilled):
        assert torch.equal(table.values_KND, first.values_KND)
        assert torch.equal(table.keys_K2, first.keys_K2)
    assert path.stat().st_size == len(content)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_table_is_named_after_all_that_its_numbers_depend_on(ready):
    views, part = ready.strategy.views, Part(ready.source, "photo")
    encoder = views.encoder("photo")

    def name(part=part, setting=SETTING, key="key"):
        return feature_store.identity(key, encoder, part, setting)

    names = {
        name(),
        name(setting=replace(SETTING, code="other")),
        name(setting=replace(SETTING, precision="bf16-true")),
    }
    names |= {name(key="other"), name(part=Part(ready.source, "notes"))}
    with torch.no_grad():
        weight = next(encoder.parameters())
        weight[0] += 1
        names.add(name())
        weight[0] -= 1
    assert len(names) == 6


def test_libraries_and_arithmetic_are_in_a_tables_name(ready, monkeypatch):
    encoder, part = ready.strategy.views.encoder("photo"), Part(ready.source, "photo")

    def name():
        return feature_store.identity("key", encoder, part, SETTING)

    plain = name()
    for library in ("torch", "timm", "transformers"):
        with monkeypatch.context() as patch:
            patch.setattr(feature_store, "version", lambda asked, newer=library: "9" if asked == newer else "1")
            first = name()
            patch.setattr(feature_store, "version", lambda asked: "1")
            assert name() != first, library
    torch.set_float32_matmul_precision("high")
    try:
        assert name() != plain
    finally:
        torch.set_float32_matmul_precision("highest")
    assert name() == plain


def test_a_worker_with_few_threads_fills_and_reads_the_table_of_one_with_many(ready, tmp_path, monkeypatch):
    seen, before = [], torch.get_num_threads()
    real = feature_store.compute
    monkeypatch.setattr(feature_store, "compute", lambda *a: seen.append(torch.get_num_threads()) or real(*a))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    try:
        torch.set_num_threads(1)
        _, was_there = ready.table(tmp_path, "photo")
        assert (was_there, seen, torch.get_num_threads()) == (False, [2], 1)
        torch.set_num_threads(2)
        assert ready.table(tmp_path, "photo")[1], "the share of the machine that a worker has is not in the name"
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not ready.table(tmp_path, "photo")[1]


def test_an_encoder_of_a_plugin_brings_its_package():
    assert callbacks._package("eyes.encoders.vit") == "eyes"
    assert callbacks._package("fusionbench.encoders.timm_vit") == "fusionbench.encoders"


@pytest.mark.parametrize(
    ("fusion", "tag", "filled"),
    # The notes alone, which are trained beside every fusion, fill their own table.
    [
        ("mmrad", "live", ("notes",)),
        ("early_intervention", "partly", ("notes", "photo")),
        ("unimodel", "partly", ("notes",)),
    ],
)
def test_only_tables_that_a_strategy_reads_are_filled_and_the_tag_says_which(ready, tmp_path, fusion, tag, filled):
    options = [f"fusion.name={fusion}", *(["fusion.prior=none"] if fusion == "early_intervention" else [])]
    _, _, data = fit(ready, tmp_path / "runs", *options, "trainer.max_epochs=1")
    assert data.tags["fusionbench.features"] == tag
    tables = (tmp_path / "runs" / "features").glob("*.safetensors")
    assert sorted(path.name.partition("-")[0] for path in tables) == list(filled)


def test_the_random_state_is_untouched(ready, tmp_path):
    before = torch.get_rng_state()
    ready.table(tmp_path, "photo")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_table_that_would_be_too_large_is_not_made(ready, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_table, "MOST_BYTES", 1000)
    with pytest.raises(TooLarge):
        ready.table(tmp_path, "photo")
    assert not list(tmp_path.glob("*.safetensors"))


def test_two_processes_take_turns(ready, tmp_path, monkeypatch):
    seen = []
    real = feature_store.compute

    def watched(*arguments):
        (path,) = tmp_path.glob("*.lock")
        with path.open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(path)
        return real(*arguments)

    monkeypatch.setattr(feature_store, "compute", watched)
    ready.table(tmp_path, "notes")
    assert seen


def test_what_other_views_train_is_in_no_tables_name(ready):
    encoder, part = ready.strategy.views.encoder("photo"), Part(ready.source, "photo")
    before = feature_store.identity("key", encoder, part, SETTING)
    encoder.stem_of_another = torch.nn.Linear(2, 2)
    try:
        assert feature_store.identity("key", encoder, part, SETTING) == before
        encoder.stem_of_another.requires_grad_(False)
        assert feature_store.identity("key", encoder, part, SETTING) != before
    finally:
        del encoder.stem_of_another
