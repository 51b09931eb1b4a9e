"""A table of runs as data: read it, plan it, run what is missing, and show the whole in MLflow and in files."""
