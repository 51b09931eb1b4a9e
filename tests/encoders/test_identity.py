"""What identifies an encoder's node, by example."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionbench.encoders.hf_text import HFText
from fusionbench.encoders.identity import content, effective, identity
from fusionbench.encoders.llama import Llama

NODE = {"model": "a", "weights": "random"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "weights"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        (made / name).write_text(name)
    return made


@pytest.mark.parametrize("more", [{"checkpointing": True}, {"checkpointing": False}, {"pool": "cls"}])
def test_what_changes_no_result_or_is_the_default_is_the_same_node(more: dict[str, object]) -> None:
    assert identity(HFText, NODE | more) == identity(HFText, NODE)


@pytest.mark.parametrize("more", [{"model": "b"}, {"pool": "mean"}, {"weights": "hub"}])
def test_what_changes_a_result_is_another_node(more: dict[str, object]) -> None:
    assert identity(HFText, NODE | more) != identity(HFText, NODE)


def test_a_class_is_part_of_a_node_and_a_tuple_is_a_list() -> None:
    node = {"weights": "random", "layers": [0, 1]}
    assert identity(Llama, node) == identity(Llama, node | {"layers": (0, 1)})
    assert identity(Llama, node) != identity(HFText, node)


def test_files_count_by_their_content_also_inside_an_option(folder: Path) -> None:
    def told() -> dict[str, object]:
        here = str(folder)
        return effective({"weights": here, "tokenizer": here, "vision": {"model": "a", "weights": here}})

    before, digest = told(), content(folder)
    folder = folder.rename(folder.with_name("moved"))
    assert told() == before == {"weights": digest, "tokenizer": digest, "vision": {"model": "a", "weights": digest}}
    (folder / "model.safetensors").write_text("other")
    assert all(told()[key] != before[key] for key in before)


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "license.txt", ".gitattributes", ".cache/x.json", "fig.png"])
def test_what_is_written_for_people_does_not_count(folder: Path, name: str) -> None:
    before = content(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("words")
    assert content(folder) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "bpe.codes", "part/model.bin"])
def test_all_else_in_a_folder_counts(folder: Path, name: str) -> None:
    before = content(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("words")
    assert content(folder) != before


def test_a_file_called_like_a_word_of_the_config_is_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").write_text("1")
    assert effective(NODE) == NODE
