"""fusionbench compares multimodal fusion strategies for disease recognition from images, text and tables."""

import os

from fusionbench import _torchvision

__version__ = "0.1.0"

# No network call and no telemetry that the user did not ask for; set before any of these libraries is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is not there is told in seconds
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_torchvision.guard()
