"""The commands that look at data, configs, components and results."""

from __future__ import annotations

import argparse

from fusionbench.arguments.shared import OVERRIDES, add, number, whole

_KINDS = ("fusion", "encoder", "encoders", "adapt", "data", "optimizer", "scheduler", "ablation", "ablations")


def check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``check``."""
    sub = add(
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
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan``."""
    sub = add(
        commands,
        "plan",
        "tell a training's parameters, memory and steps before it starts\n\n"
        "Parameters by part; memory of each GPU under DDP, ZeRO-2 and ZeRO-3, with and without offload, and what is\n"
        "offloaded to each node's main memory; what to type so that it fits, with the least communication; steps and\n"
        "cases; what difference the test split can show.\n"
        "Nothing is computed and no weights are read: of a pretrained encoder its config.json is enough.\n\n"
        "  fusionbench plan --config experiments/ei_mmcamd.yaml\n"
        "  fusionbench plan --config experiments/mdf_fundus.yaml --gpus 4 --gpu-memory 24 trainer.checkpointing=true",
    )
    sub.add_argument("--config", required=True, metavar="FILE", help="a yaml file; it may extend others")
    sub.add_argument(
        "--gpus", type=whole, metavar="N", help="GPUs a node (default: this machine's, else the config's devices)"
    )
    sub.add_argument(
        "--gpu-memory", type=number, metavar="G", help="GB of each GPU, of 2^30 bytes (default: this machine's)"
    )
    sub.add_argument(
        "--main-memory",
        type=number,
        metavar="G",
        help="GB of each node's main memory, for offload (default: this machine's; with --gpu-memory not limited)",
    )
    sub.add_argument("--out", metavar="DIR", help="write markdown and csv there")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def list_(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``list``."""
    sub = add(
        commands,
        "list",
        "name what there is, one line each\n\n"
        "Components of the package, or the ablation tables in ./experiments/ablations.\n\n"
        "  fusionbench list fusion\n"
        "  fusionbench list ablations",
    )
    sub.add_argument("kind", choices=_KINDS)


def show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``show``."""
    sub = add(
        commands,
        "show",
        "print a component's description and options, or what an ablation table runs\n\n"
        "  fusionbench show fusion early_intervention\n"
        "  fusionbench show ablation demo_fusion",
    )
    sub.add_argument("kind", choices=_KINDS)
    sub.add_argument("name")


def compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare``."""
    sub = add(
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
        "--margin", type=number, metavar="M", help="differences below do not matter (default: the table's, or 0.02)"
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
    group.add_argument("--cases", type=whole, metavar="N", help="test cases, instead of a config")
    group.add_argument("--groups", type=whole, metavar="G", help="patients among them (default: as many as cases)")
    group.add_argument("--classes", type=whole, metavar="K", help="classes, equally frequent (default: 2)")
    group.add_argument(
        "--methods", type=whole, default=2, metavar="N", help="methods to compare (default: %(default)s)"
    )
    group.add_argument("--score", type=number, default=0.8, metavar="S", help="AUC and accuracy (default: %(default)s)")
    group.add_argument(
        "--correlation", type=number, default=0.5, metavar="R", help="of two methods' scores (default: %(default)s)"
    )
    group.add_argument("--icc", type=number, default=0.1, metavar="R", help="within a patient (default: %(default)s)")


def prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``prepare``."""
    sub = add(
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


def ui(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ui``."""
    sub = add(commands, "ui", "open the MLflow UI over the runs, on 127.0.0.1 only\n\n  fusionbench ui --port 5000")
    sub.add_argument("--port", type=whole, default=5000, help="port on 127.0.0.1 (default: %(default)s)")
    sub.add_argument("--folder", default="runs", metavar="DIR", help="folder of the local store (default: %(default)s)")
