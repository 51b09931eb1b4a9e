"""``fusionbench check``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fusionbench import config
from fusionbench.config import Node
from fusionbench.errors import UserError

if TYPE_CHECKING:
    from fusionbench.data.check import CheckReport
    from fusionbench.data.validate import Finding
    from fusionbench.types import ModalitySpec, Tokenizer


def run(options: argparse.Namespace) -> int:
    """Read a whole dataset and print the report; 1 if it has errors."""
    tree = config.read(Path(options.config)) if options.config else {}
    tree = config.resolve(config.merge(tree, config.parse_overrides(options.overrides)))
    if "data" not in tree:
        raise UserError("check needs a dataset: --config FILE, or data.name=NAME with its options")
    node = config.check_node("data", "data", tree["data"])
    from fusionbench.data.base import make_dataset
    from fusionbench.data.check import check, print_report
    from fusionbench.data.module import choose_modalities
    from fusionbench.data.texts import TextReader

    dataset = make_dataset(node)
    specs = choose_modalities(dataset, node.get("modalities"))
    cache = Path(node["cache"]) if node.get("cache") else None
    tokenizers, notes = _tokenizers(tree, specs)
    length = config.data_options()["text_length"].default
    texts = TextReader(**(node.get("text") or {}), tokenizers=tokenizers, length=node.get("text_length", length))
    report = check(dataset, list(specs), node.get("allow"), cache, texts, node.get("masks"))
    notes += [*_content(texts.content, specs), *_text_only(tree, specs, report)]
    print_report(dataclasses.replace(report, findings=(*report.findings, *notes)), Console(highlight=False))
    return 0 if report.ok else 1


def _tokenizers(tree: Node, specs: Mapping[str, ModalitySpec]) -> tuple[dict[str, Tokenizer], list[Finding]]:
    """Return the tokenizer of each text that the config has an encoder for, and a note where it cannot be read."""
    from fusionbench import registry
    from fusionbench.data.validate import Finding

    made: dict[str, Tokenizer] = {}
    notes: list[Finding] = []
    encoder: Mapping[str, Any] = tree.get("encoder") or {}
    for name in (name for name, spec in specs.items() if spec.kind == "text"):
        given = encoder if "name" in encoder else encoder.get(name)
        if given is None:
            continue
        node = config.check_node("encoder", f"encoder.{name}", given)
        component = registry.describe("encoder", node.pop("name"))
        try:
            if "text" in component.constants.get("kinds", ()):
                made[name] = component.load().load_tokenizer(node)
        except UserError as error:
            notes.append(Finding("note", f"how many tokens the texts of '{name}' have is not known: {error}"))
    return made, notes


def _content(content: str, specs: Mapping[str, ModalitySpec]) -> Iterator[Finding]:
    """Say which content of the texts was read."""
    from fusionbench.data.texts import unread
    from fusionbench.data.validate import Finding

    for name in (name for name, spec in specs.items() if spec.kind == "text"):
        yield Finding("note", f"the content of '{name}' that is read is {content} (data.text.content)")
    for note in unread(content, specs):
        yield Finding("note", note)


def _text_only(tree: Node, specs: Mapping[str, ModalitySpec], report: CheckReport) -> Iterator[Finding]:
    """Say which texts a run of the config trains alone, too, and which not for want of a second class."""
    from fusionbench.data.validate import Finding
    from fusionbench.stage_one import text_only, untrained

    fusion = (tree.get("fusion") or {}).get("name")
    texts = text_only(fusion, specs, report.presence) if fusion else []
    for name in (name for name in texts if name not in report.lone):
        yield Finding("note", f"a run of this config trains '{name}' alone, too: reports may spell out the labels")
    for note in untrained(texts, report.lone):
        yield Finding("note", note)
