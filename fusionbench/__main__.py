"""The command line: argument parsing and nothing else; each command is a module of ``fusionbench.commands``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from fusionbench import __version__
from fusionbench.errors import UserError

_KINDS = ("fusion", "encoder", "encoders", "adapt", "data", "optimizer", "scheduler")
_TAKE_A_VALUE = ("--config", "--csv", "--out", "--folder", "--split", "--port")
_OVERRIDES = "change the config, e.g. trainer.max_epochs=5 data.root=/data/mmc-amd"


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
    _fit(commands)
    _test(commands)
    _predict(commands)
    _check(commands)
    _list(commands)
    _show(commands)
    _ui(commands)
    return top


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "fit",
        "train, test and track a config\n\n"
        "Stage-1 runs that are there already are reused. A run that was cut off goes on with --resume, in the same\n"
        "MLflow run, from its last finished epoch.\n\n"
        "  fusionbench fit --config experiments/demo.yaml\n"
        "  fusionbench fit --config experiments/ei_mmcamd.yaml data.root=/data/mmc-amd seed=1",
    )
    sub.add_argument("--config", required=True, metavar="FILE", help="a yaml file; it may extend others")
    sub.add_argument("--resume", action="store_true", help="go on with the run of this config that was cut off")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _test(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "test",
        "score a tracked run's model again on the test split\n\n"
        "  fusionbench test RUN\n  fusionbench test RUN data.root=/elsewhere",
    )
    _model_arguments(sub)


def _predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "predict",
        "write a table of probabilities for each case\n\n"
        "The cases are those of the run's own dataset, of a csv with a column for each modality, or of a data node.\n\n"
        "  fusionbench predict RUN --split test\n"
        "  fusionbench predict RUN --csv new_cases.csv --out probabilities.csv",
    )
    _model_arguments(sub)
    sub.add_argument("--csv", metavar="FILE", help="cases to predict, one row each, columns named as the modalities")
    sub.add_argument("--split", choices=("train", "val", "test"), help="only this split; default: all cases")
    sub.add_argument("--out", default="predictions.csv", metavar="FILE", help=".csv or .parquet (default: %(default)s)")


def _model_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="RUN", help="a run's id or name, or a folder with model.json")
    sub.add_argument("--folder", default=None, metavar="DIR", help="folder of the local store (default: runs)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "check",
        "read a dataset and report what is wrong with it\n\n"
        "Cases for each split and class, missing and unreadable files, groups in two splits, identical files in two\n"
        "splits, cases with no modality. Ends with status 1 if there is an error.\n\n"
        "  fusionbench check --config experiments/ei_mmcamd.yaml\n"
        "  fusionbench check data.name=mmc_amd data.root=/data/mmc-amd",
    )
    sub.add_argument("--config", metavar="FILE", help="a yaml file with a data node")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(commands, "list", "name what there is, one line each\n\n  fusionbench list fusion")
    sub.add_argument("kind", choices=_KINDS)


def _show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "show",
        "print a component's description and options\n\n  fusionbench show fusion early_intervention",
    )
    sub.add_argument("kind", choices=_KINDS)
    sub.add_argument("name")


def _ui(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(commands, "ui", "open the MLflow UI over the runs, on 127.0.0.1 only\n\n  fusionbench ui --port 5000")
    sub.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: %(default)s)")
    sub.add_argument("--folder", default="runs", metavar="DIR", help="folder of the local store (default: %(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parse(list(sys.argv[1:] if arguments is None else arguments))
    warnings.formatwarning = _one_line
    try:
        return int(import_module(f"fusionbench.commands.{options.command}").run(options))
    except UserError as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if options.traceback or not _is_the_worlds(error):
            raise
        print(f"error: {_first_line(error)}; see all of it with 'fusionbench --traceback ...'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; 'fusionbench fit --resume' goes on from the last finished epoch" if options.command == "fit" else ""
        print(f"interrupted{advice}", file=sys.stderr)
        return 130


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Show a warning as its sentence alone."""
    return f"warning: {message}\n"


def _is_the_worlds(error: Exception) -> bool:
    """Say whether an error is the disk's, a tracking server's or a device's, and so not a fault of the program."""
    return isinstance(error, OSError) or type(error).__name__ in ("MlflowException", "OutOfMemoryError")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:400] or type(error).__name__


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse, with ``key=value`` anywhere among the options, which plain argparse refuses."""
    before = ["", *arguments]
    taken = [_is_override(a) and before[i] not in _TAKE_A_VALUE for i, a in enumerate(arguments)]
    flags = [a for a, is_one in zip(arguments, taken, strict=True) if not is_one]
    overrides = [a for a, is_one in zip(arguments, taken, strict=True) if is_one]
    options = parser().parse_args(flags)
    if overrides and not hasattr(options, "overrides"):
        parser().error(f"'{options.command}' takes no overrides such as '{overrides[0]}'")
    if hasattr(options, "overrides"):
        options.overrides = [*options.overrides, *overrides]
    return options


def _is_override(argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and not key.startswith("-") and "/" not in key


if __name__ == "__main__":
    sys.exit(main())
