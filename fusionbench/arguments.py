"""The options of every command and what ``--help`` says of them; nothing here imports what a command needs."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fusionbench import __version__

_KINDS = ("fusion", "encoder", "encoders", "adapt", "data", "optimizer", "scheduler", "ablation", "ablations")
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
    _ablate(commands)
    _test(commands)
    _predict(commands)
    _export(commands)
    _check(commands)
    _plan(commands)
    _list(commands)
    _show(commands)
    _compare(commands)
    _prepare(commands)
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


def _ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "ablate",
        "run a table of strategies, datasets and seeds, and write its results\n\n"
        "What has ended is kept, what was cut off goes on: the same command again does what is left. A run that fails\n"
        "is a hole in the table with its reason, and the status is then 1; data that are not there are skipped.\n\n"
        "  fusionbench ablate --config experiments/ablations/demo_fusion.yaml --dry-run\n"
        "  fusionbench ablate --config experiments/ablations/demo_fusion.yaml --rows mean,concat trainer.max_epochs=1\n"
        "  fusionbench ablate --all experiments/ablations --parallel 2\n"
        "  fusionbench ablate --all experiments/ablations --launcher slurm --slurm time=240 --slurm gpus_per_node=1",
    )
    sub.add_argument("--config", action="append", metavar="FILE", help="a table's yaml file; may be given repeatedly")
    sub.add_argument("--all", metavar="DIR", help="every table in a folder; those without any data are skipped")
    sub.add_argument("--rows", type=_words, default=(), metavar="A,B", help="run only these rows; default: all")
    sub.add_argument("--seeds", type=_numbers, default=(), metavar="0,1", help="run only these seeds; default: all")
    sub.add_argument("--dry-run", action="store_true", help="show each run's state and an estimate of time, and end")
    sub.add_argument(
        "--parallel", type=_whole, metavar="N", help="processes at once, one a GPU (default: 1), or jobs (default: 64)"
    )
    sub.add_argument(
        "--launcher",
        choices=("local", "slurm"),
        default="local",
        help="processes of this machine, or a job of a SLURM cluster for each run (default: %(default)s)",
    )
    sub.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="key=value",
        help="an option of each job, as submitit names those of sbatch: time (minutes), partition, gpus_per_node, "
        "cpus_per_task, mem, account, setup, ...; repeatable",
    )
    sub.add_argument("--results", default="results", metavar="DIR", help="folder of the results (default: %(default)s)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError(f"must be names or numbers with commas between them, not '{text}'")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 0,1, not '{text}'") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{text}'") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number such as 0.5, not '{text}'") from None


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


def _export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "export",
        "write a run's trained tensors into one safetensors file\n\n"
        "Whatever number of processes trained it. Of a run that was cut off, its checkpoint is read.\n\n"
        "  fusionbench export RUN --out trained.safetensors\n"
        "  fusionbench export RUN --with-base --out whole.safetensors",
    )
    _model_arguments(sub)
    sub.add_argument("--out", required=True, metavar="FILE", help="a .safetensors file")
    sub.add_argument("--checkpoint", choices=("best", "last"), help="of a run that was cut off (default: best)")
    sub.add_argument("--with-base", action="store_true", help="the frozen base as well; needs the run's data")


def _model_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", metavar="RUN", help="a run's id or name, or a folder with model.json")
    sub.add_argument("--folder", default=None, metavar="DIR", help="folder of the local store (default: runs)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "check",
        "read a dataset and report what is wrong with it\n\n"
        "Cases for each split and class, missing and unreadable files, cases with no modality, and what lets a model\n"
        "see what it is scored on: groups in two splits, pictures the same or nearly so in two splits, tables\n"
        "standardised before the split, validation equal to test. Ends with status 1 if there is an error; leaks that\n"
        "you know of are let through by data.allow, and tagged as such in every run.\n\n"
        "  fusionbench check --config experiments/ei_mmcamd.yaml\n"
        "  fusionbench check data.name=mmc_amd data.root=/data/mmc-amd 'data.allow=[near_duplicates]'",
    )
    sub.add_argument("--config", metavar="FILE", help="a yaml file with a data node")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "plan",
        "tell a training's parameters, memory and steps before it starts\n\n"
        "Parameters by part; memory of each GPU under DDP, ZeRO-2 and ZeRO-3, with and without offload; what to type\n"
        "so that it fits, with the least communication; steps and cases; what difference the test split can show.\n"
        "Nothing is computed and no weights are read: of a pretrained encoder its config.json is enough.\n\n"
        "  fusionbench plan --config experiments/ei_mmcamd.yaml\n"
        "  fusionbench plan --config experiments/mdf_fundus.yaml --gpus 4 --gpu-memory 24 trainer.checkpointing=true",
    )
    sub.add_argument("--config", required=True, metavar="FILE", help="a yaml file; it may extend others")
    sub.add_argument(
        "--gpus", type=_whole, metavar="N", help="GPUs a node (default: this machine's, else the config's devices)"
    )
    sub.add_argument(
        "--gpu-memory", type=_number, metavar="G", help="GB of each GPU, of 2^30 bytes (default: this machine's)"
    )
    sub.add_argument("--out", metavar="DIR", help="write markdown and csv there")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=_OVERRIDES)


def _list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "list",
        "name what there is, one line each\n\n"
        "Components of the package, or the ablation tables in ./experiments/ablations.\n\n"
        "  fusionbench list fusion\n"
        "  fusionbench list ablations",
    )
    sub.add_argument("kind", choices=_KINDS)


def _show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "show",
        "print a component's description and options, or what an ablation table runs\n\n"
        "  fusionbench show fusion early_intervention\n"
        "  fusionbench show ablation demo_fusion",
    )
    sub.add_argument("kind", choices=_KINDS)
    sub.add_argument("name")


def _compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "compare",
        "say which of several runs is better, tied, or not to be told apart\n\n"
        "From their predictions alone, by a paired bootstrap over groups (patients) and seeds and Holm's correction.\n"
        "Runs that differ only by their seed are one method. Each strategy is also held against its modalities alone\n"
        "and plain concatenation, in a table against those that are tuned as it is. With --plan: what difference a\n"
        "test split can show, before anything trains.\n\n"
        "  fusionbench compare RUN RUN RUN --metric mAP\n"
        "  fusionbench compare --table demo_fusion --out results\n"
        "  fusionbench compare --plan --config experiments/demo.yaml\n"
        "  fusionbench compare --plan --cases 79 --groups 60 --classes 4",
    )
    sub.add_argument("runs", nargs="*", metavar="RUN", help="a run's id or name")
    sub.add_argument("--table", action="append", metavar="NAME", help="a table of 'fusionbench ablate'; repeatable")
    sub.add_argument("--metric", metavar="NAME", help="headline metric (default: the table's, or mAP)")
    sub.add_argument(
        "--margin", type=_number, metavar="M", help="differences below do not matter (default: the table's, or 0.02)"
    )
    sub.add_argument("--crosscheck", action="store_true", help="also DeLong's and McNemar's tests")
    sub.add_argument("--diagram", metavar="FILE", help="critical-difference diagram (png) over five or more datasets")
    sub.add_argument("--folder", default="runs", metavar="DIR", help="folder of the local store (default: %(default)s)")
    sub.add_argument("--out", metavar="DIR", help="write markdown, csv and a forest plot there")
    _compare_plan(sub.add_argument_group("before training"))
    sub.set_defaults(overrides=[])


def _compare_plan(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--plan", action="store_true", help="say what difference a test split can show")
    group.add_argument("--config", metavar="FILE", help="count this config's test split; takes key=value overrides")
    group.add_argument("--cases", type=_whole, metavar="N", help="test cases, instead of a config")
    group.add_argument("--groups", type=_whole, metavar="G", help="patients among them (default: as many as cases)")
    group.add_argument("--classes", type=_whole, metavar="K", help="classes, equally frequent (default: 2)")
    group.add_argument(
        "--methods", type=_whole, default=2, metavar="N", help="methods to compare (default: %(default)s)"
    )
    group.add_argument(
        "--score", type=_number, default=0.8, metavar="S", help="AUC and accuracy (default: %(default)s)"
    )
    group.add_argument(
        "--correlation", type=_number, default=0.5, metavar="R", help="of two methods' scores (default: %(default)s)"
    )
    group.add_argument("--icc", type=_number, default=0.1, metavar="R", help="within a patient (default: %(default)s)")


def _prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(
        commands,
        "prepare",
        "build a dataset's folder from its raw collection\n\n"
        "openi: NLMCXR_png.tgz and NLMCXR_reports.tgz are at https://openi.nlm.nih.gov/imgs/collections/ (CC BY-NC-ND\n"
        "4.0); the files of the split are TransChex_openi.zip, linked from the README of MONAI's tutorial\n"
        "multimodal/openi_multilabel_classification_transchex. Stopped, the same command goes on where it was.\n\n"
        "  fusionbench prepare openi --images NLMCXR_png.tgz --reports NLMCXR_reports.tgz \\\n"
        "      --splits TransChex_openi --out data/openi/dataset_proc",
    )
    sub.add_argument("dataset", choices=("openi",))
    sub.add_argument("--images", required=True, metavar="FILE", help="archive of the pictures")
    sub.add_argument("--reports", required=True, metavar="FILE", help="archive of the reports in XML")
    sub.add_argument("--splits", required=True, metavar="DIR", help="holds {train,validation,test}.npy, or .csv files")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder to build: the dataset's data.root")


def _ui(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sub = _add(commands, "ui", "open the MLflow UI over the runs, on 127.0.0.1 only\n\n  fusionbench ui --port 5000")
    sub.add_argument("--port", type=_whole, default=5000, help="port on 127.0.0.1 (default: %(default)s)")
    sub.add_argument("--folder", default="runs", metavar="DIR", help="folder of the local store (default: %(default)s)")
