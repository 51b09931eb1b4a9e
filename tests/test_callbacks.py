"""What callbacks keep of the program's own answers to signals."""

import signal

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fusionbench.callbacks import OwnSignals
from fusionbench.signals import terminable


class Listening(L.LightningModule):
    """Notes who answers SIGTERM, from the first loader on to the prediction."""

    def __init__(self):
        super().__init__()
        self.layer, self.answers = nn.Linear(2, 1), []

    def train_dataloader(self):
        self.note()
        return DataLoader([torch.zeros(2)])

    def training_step(self, batch):
        self.note()
        return self.layer(batch).sum()

    def predict_step(self, batch):
        self.note()
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def note(self):
        self.answers.append(signal.getsignal(signal.SIGTERM))


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*", "ignore:.*logging interval.*"
)
def test_sigterm_is_answered_by_the_program_from_the_first_loader_on(tmp_path):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[OwnSignals()], **quiet)
    module = Listening()
    with terminable():
        own = signal.getsignal(signal.SIGTERM)
        trainer.fit(module)
        trainer.predict(module, DataLoader([torch.zeros(2)]))
        assert signal.getsignal(signal.SIGTERM) is own
    assert module.answers == [own] * 3
