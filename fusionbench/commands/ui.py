"""``fusionbench ui``."""

import argparse
import os
import socket
import sys
from pathlib import Path

from fusionbench.errors import UserError
from fusionbench.sections import TrackingOptions


def run(options: argparse.Namespace) -> int:
    """Become the MLflow server, bound to 127.0.0.1.

    Raises:
        UserError: There are no runs, or the port is taken.
    """
    folder = Path(options.folder).absolute()
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given and given.startswith("http"):
        raise UserError(f"runs are kept by the server at {given}, which has its own UI: open that address")
    if not given and not (folder / "mlflow.db").is_file():
        raise UserError(f"there are no runs in '{folder}' yet; fit one, or point elsewhere with --folder")
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port must lie in 1 to 65535, not {options.port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError:
            raise UserError(f"port {options.port} is taken; choose another with --port") from None
    from fusionbench.tracking import store_uri

    uri = store_uri(TrackingOptions(folder=str(folder)))
    print(f"MLflow over {uri} at http://127.0.0.1:{options.port} (stop with Ctrl-C)", flush=True)
    arguments = ["-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(options.port), "--backend-store-uri", uri]
    os.execv(sys.executable, [sys.executable, *arguments])
