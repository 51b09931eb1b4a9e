"""What commands share: how they are added, and how words on the command line become values."""

from __future__ import annotations

import argparse

OVERRIDES = "change the config, e.g. trainer.max_epochs=5 data.root=/data/mmc-amd"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    """Add a command, whose help is the first line of the text and whose description is all of it."""
    return commands.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def model_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what names a trained model."""
    sub.add_argument("model", metavar="RUN", help="a run's id or name, or a folder with model.json")
    sub.add_argument("--folder", default=None, metavar="DIR", help="folder of the local store (default: runs)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def words(text: str) -> tuple[str, ...]:
    """Read ``a,b`` as words."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"must be names or numbers with commas between them, not '{text}'")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Read ``0,1`` as whole numbers."""
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 0,1, not '{text}'") from None


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{text}'") from None


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number such as 0.5, not '{text}'") from None
