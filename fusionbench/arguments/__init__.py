"""The options of every command and what ``--help`` says of them; nothing here imports what a command needs."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fusionbench import __version__
from fusionbench.arguments import looks, runs


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence, as all of the program does, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """End with the sentence and status 2."""
        self.exit(2, f"error: {message}; see '{self.prog} --help'\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top: argparse.ArgumentParser = _Parser(
        prog="fusionbench",
        description="Compare multimodal fusion strategies for disease recognition from images, text and tables.",
    )
    top.add_argument("--version", action="version", version=f"fusionbench {__version__}")
    top.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs.fit(commands)
    runs.ablate(commands)
    runs.test(commands)
    runs.predict(commands)
    runs.export(commands)
    looks.check(commands)
    looks.plan(commands)
    looks.list_(commands)
    looks.show(commands)
    looks.compare(commands)
    looks.prepare(commands)
    looks.ui(commands)
    return top
