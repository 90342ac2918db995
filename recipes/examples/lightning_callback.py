"""Find a signed mask with AWS in PyTorch Lightning, and use it on a fresh network.

Shows      PruneSigns, a callback that runs each batch under SignPruner. Each level is one trainer.fit
Prints     density and test error of each level, then of fresh networks: with the signs, and with the mask alone
Data       scikit-learn's digits, 1,797 real images of 8×8 pixels. Time: 20 seconds on one core
Launch     python recipes/examples/lightning_callback.py
"""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import SignPruner

digits = load_digits()
images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=64, shuffle=True)
OPTIONS = {"max_epochs": 5, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


class PruneSigns(pl.Callback):
    def __init__(self, pruner):
        self.pruner = pruner

    def on_train_start(self, trainer, module):
        self.pruner.attach(*trainer.optimizers)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.pruner.begin_step()

    def on_after_backward(self, trainer, module):
        self.pruner.end_step()


class Digits(pl.LightningModule):
    def __init__(self, seed, keep=None):
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.keep = nn.Sequential(), keep
        for channels, width, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            self.net.extend([nn.Conv2d(channels, width, 3, stride, 1), nn.GroupNorm(8, width), nn.ReLU()])
        self.net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        if self.keep:
            self.keep.keep(optimizer, self.net)
        return optimizer

    def fit...


if __name__ == "__main__":
    module = Digits(seed=1)
    pruner = SignPruner(module.net, method="aws", classifier="11", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        ...
