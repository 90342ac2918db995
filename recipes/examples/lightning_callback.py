"""Find a signed mask by a callback of Lightning, and use it.

Prints     test error on scikit-learn's digits of each level, then of fresh networks: with signs, with the mask alone
Launch     python recipes/examples/lightning_callback.py
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn

from harness import SignPruner


class PruneSigns(pl.Callback):
    def __init__(self, pruner):
        self.pruner = pruner

    def on_train_start(self, trainer, module):
        self.pruner.attach(*trainer.optimizers)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.pruner.begin_step()

    def on_after_backward(self, trainer, module):
        self.pruner.end_step()


class Classifier(pl.LightningModule):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(64, 512), nn.LayerNorm(512), nn.ReLU(), nn.Linear(512, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def fit(self, callback):
        pixels, labels = torch.tensor(load_digits().data).float() / 16, torch.tensor(load_digits().target)
        loader = torch.utils.data.DataLoader(list(zip(pixels, labels, strict=True))[:1297], batch_size=64, shuffle=True)
        pl.Trainer(max_epochs=5, accelerator="cpu", barebones=True, callbacks=[callback]).fit(self, loader)
        return 100 * (self.net(pixels[1297:]).argmax(1) != labels[1297:]).float().mean()


if __name__ == "__main__":
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    pl.utilities.rank_zero.rank_zero_module.log.setLevel("ERROR")  # no notes of Lightning
    model = Classifier(seed=1)
    pruner = SignPruner(model.net, method="aws", classifier="3", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        print(f"{level}: test error {model.fit(PruneSigns(pruner)):.1f} %")
    pruner.signed_mask().save("lightning_callback.safetensors")  # SignedMask.load reads it
    for use in (pruner.signed_mask(), pruner.mask):
        fresh = Classifier(seed=2)
        use.apply_(fresh.net.state_dict() if use is pruner.mask else fresh.net)
        keep = pl.callbacks.LambdaCallback(on_train_start=lambda t, m: pruner.signed_mask().keep(*t.optimizers, m.net))
        print(f"fresh network, {type(use).__name__}: test error {fresh.fit(keep):.1f} %")
