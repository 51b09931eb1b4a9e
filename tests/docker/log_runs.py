"""A process that logs runs: ``log_runs.py URI FOLDER NAME COUNT``; waits for a line on stdin, prints what it logged."""

import json
import sys
from pathlib import Path

from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store

POINTS = 700  # more than a batch of 500


def main(uri: str, folder: str, name: str, count: str) -> None:
    """Log runs with points, parameters, tags, a dataset and an artifact each."""
    import mlflow  # noqa: F401 - before the start, so that both processes begin at once

    print("ready", flush=True)
    sys.stdin.readline()
    place = Store(TrackingOptions(uri=uri, folder=folder, experiment="together"))
    runs = {}
    for number in range(int(count)):
        run = place.start(f"{name}-{number}", f"{name}{number}", {"fusionbench.fusion": name})
        run.log_params({"data.name": name, "seed": number})
        run.log_dataset("drawn", name, "1")
        for step in range(POINTS):
            run.log_metrics({"train/loss": (number + 1) / (step + 1)}, step)
        run.flush()
        run.log_artifact(artifact(Path(folder), name, number), "predictions")
        run.finish("FINISHED")
        runs[run.run_id] = number
    print(json.dumps({"experiment": place.experiment, "runs": runs, "hashed": place.anonymous("0042")}), flush=True)


def artifact(folder: Path, name: str, number: int) -> Path:
    """Write a file with a content of its own."""
    path = folder / name / str(number) / "cases.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content(name, number))
    return path


def content(name: str, number: int) -> bytes:
    """Return what the file of a run holds."""
    return f"{name} {number} ".encode() * 20_000


if __name__ == "__main__":
    main(*sys.argv[1:])
