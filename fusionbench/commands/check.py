"""``fusionbench check``."""

import argparse
from pathlib import Path

from rich.console import Console

from fusionbench import config
from fusionbench.errors import UserError


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

    dataset = make_dataset(node)
    modalities = list(choose_modalities(dataset, node.get("modalities")))
    cache = Path(node["cache"]) if node.get("cache") else None
    report = check(dataset, modalities, node.get("allow"), cache)
    print_report(report, Console(highlight=False))
    return 0 if report.ok else 1
