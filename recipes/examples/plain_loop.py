"""Find a signed mask in a plain PyTorch loop, and use it.

Shows      SignPruner around your own loop: levels, attach, step
Prints     test error on scikit-learn's digits of each level, then of fresh networks: with signs, with the mask alone
Launch     python recipes/examples/plain_loop.py
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import nullcontext

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import SignPruner
from harness.training.batchnorm import reestimate_batchnorm

digits = load_digits()
images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=64, shuffle=True)


def network(seed):
    torch.manual_seed(seed)
    layers = []
    for channels, width, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(model, optimizer, step=nullcontext, epochs=2):
    for _ in range(epochs):
        for batch, target in loader:
            with step():  # pruner.step: here the norm layers see αψ + (1−α)ψ_init
                nn.functional.cross_entropy(model.train()(batch), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    reestimate_batchnorm(model, [images[:1297]], "cumulative")  # AWS estimated them under other ψ
    with torch.no_grad():
        return 100 * (model.eval()(images[1297:]).argmax(1) != labels[1297:]).float().mean().item()


if __name__ == "__main__":
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    model = network(seed=1)
    pruner = SignPruner(model, method="aws", classifier="11", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        optimizer = pruner.attach(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        print(f"{level}: test error {train(model, optimizer, pruner.step, epochs=5):.1f} %")
    signed_mask = pruner.signed_mask()
    signed_mask.save("plain_loop.safetensors")  # SignedMask.load reads it

    for use in (signed_mask, signed_mask.mask):
        fresh = network(seed=2)
        use.apply_(fresh if use is signed_mask else fresh.state_dict())
        optimizer = torch.optim.SGD(fresh.parameters(), 0.1, momentum=0.9)
        signed_mask.keep(optimizer, fresh)  # pruned weights stay at 0
        print(f"fresh network, {type(use).__name__}: test error {train(fresh, optimizer):.1f} %")
