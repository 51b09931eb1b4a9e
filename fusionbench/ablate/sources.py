"""A process's data, each dataset read once however many runs need it."""

from __future__ import annotations

import copy
import json

from fusionbench import build, registry
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.errors import UserError


class Sources:
    """Reads the data of configs; those with the same data node and tokenizers share one reading."""

    def __init__(self) -> None:
        self._made: dict[str, FusionData | UserError] = {}

    def __call__(self, config: Config) -> FusionData:
        """Return a config's data, with its own seed.

        Raises:
            UserError: The data have a fault, or do not go with the config.
        """
        key = json.dumps([config.data, _readers_of_text(config)], sort_keys=True, default=str)
        made = self._made.get(key) or self._read(key, config)
        if isinstance(made, UserError):
            raise made
        build.check_data(config, made)
        own = copy.copy(made)
        own.seed, own.notes = config.seed, list(made.notes)
        return own

    def _read(self, key: str, config: Config) -> FusionData | UserError:
        try:
            self._made[key] = build.data(config)
        except UserError as error:
            self._made[key] = error
        return self._made[key]


def _readers_of_text(config: Config) -> dict[str, object]:
    """Return the encoder nodes that tokenize; the others have no say in how data are read."""
    kinds = {m: registry.describe("encoder", n["name"]).constants.get("kinds", ()) for m, n in config.encoder.items()}
    return {modality: node for modality, node in config.encoder.items() if "text" in kinds[modality]}
