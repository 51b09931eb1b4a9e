"""What the tests of stored features share."""

from dataclasses import dataclass
from pathlib import Path

from program import command, history, new_store, runs, store

from fusionbench.adapt import feature_store
from fusionbench.adapt.feature_store import Part, Setting

PLAIN = {"rotate": 0, "crop": 0, "flip_p": 0, "contrast": None, "brightness": None, "saturation": None}
SETTING = Setting("code", "32-true", lambda batch: batch)


@dataclass(frozen=True)
class Ready:
    """Data, a frozen strategy on them, and the config that both come from."""

    path: Path
    source: object
    strategy: object

    def table(self, folder, name):
        """Open a modality's table as a run does; return it and whether it was there."""
        views = self.strategy.views
        part = Part(self.source, name)
        key, index = views.address[name]
        return feature_store.table(folder, views.identities[key], views.encoder(name), part, SETTING, index)


def fit(ready, folder, *options):
    """Fit and return what was said, the run's history of losses and scores, and its tag."""
    place = new_store(folder) if not folder.exists() else folder
    done = command("fit", "--config", ready.path, f"tracking.folder={place}", *options)
    assert done.code == 0, done.err
    opened = store(place)
    run = runs(opened)[-1]
    return done.out + done.err, history(opened, run.info.run_id, ("train", "val", "test")), run.data
