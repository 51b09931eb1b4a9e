"""The commands that train, and those that use what was trained."""

from __future__ import annotations

import argparse

from fusionbench.arguments.shared import OVERRIDES, add, model_arguments, numbers, whole, words


def fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``fit``."""
    sub = add(
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
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ablate``."""
    sub = add(
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
    sub.add_argument("--rows", type=words, default=(), metavar="A,B", help="run only these rows; default: all")
    sub.add_argument("--seeds", type=numbers, default=(), metavar="0,1", help="run only these seeds; default: all")
    sub.add_argument("--dry-run", action="store_true", help="show each run's state and an estimate of time, and end")
    sub.add_argument(
        "--parallel", type=whole, metavar="N", help="processes at once, one a GPU (default: 1), or jobs (default: 64)"
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
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def test(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``test``."""
    sub = add(
        commands,
        "test",
        "score a tracked run's model again on the test split\n\n"
        "  fusionbench test RUN\n  fusionbench test RUN data.root=/elsewhere",
    )
    model_arguments(sub)


def predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``predict``."""
    sub = add(
        commands,
        "predict",
        "write a table of probabilities for each case\n\n"
        "The cases are those of the run's own dataset, of a csv with a column for each modality, or of a data node.\n\n"
        "  fusionbench predict RUN --split test\n"
        "  fusionbench predict RUN --csv new_cases.csv --out probabilities.csv",
    )
    model_arguments(sub)
    sub.add_argument("--csv", metavar="FILE", help="cases to predict, one row each, columns named as the modalities")
    sub.add_argument("--split", choices=("train", "val", "test"), help="only this split; default: all cases")
    sub.add_argument("--out", default="predictions.csv", metavar="FILE", help=".csv or .parquet (default: %(default)s)")


def export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export``."""
    sub = add(
        commands,
        "export",
        "write a run's trained tensors into one safetensors file\n\n"
        "Whatever number of processes trained it. Of a run that was cut off, its checkpoint is read.\n\n"
        "  fusionbench export RUN --out trained.safetensors\n"
        "  fusionbench export RUN --with-base --out whole.safetensors",
    )
    model_arguments(sub)
    sub.add_argument("--out", required=True, metavar="FILE", help="a .safetensors file")
    sub.add_argument("--checkpoint", choices=("best", "last"), help="of a run that was cut off (default: best)")
    sub.add_argument("--with-base", action="store_true", help="the frozen base as well; needs the run's data")
