"""From tracked runs to tables, statistics and figures; reads per-case predictions, never runs a model."""
