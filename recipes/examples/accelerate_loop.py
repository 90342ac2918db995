"""Find a signed mask in a loop of Accelerate, and use it.

Shows      SignPruner with prepare, gradient accumulation and clipping, on one or several processes
Prints     test error on scikit-learn's digits of each level, then of fresh networks: with signs, with the mask alone
Launch     accelerate launch --num_processes 1 recipes/examples/accelerate_loop.py
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from harness import SignPruner

accelerator, digits = Accelerator(gradient_accumulation_steps=2), load_digits()
images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)


def network(seed):
    torch.manual_seed(seed)
    layers = []
    for channels, width, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(model, optimizer, step=nullcontext, epochs=2):
    loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=32, shuffle=True)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch, target in (pair for _ in range(epochs) for pair in loader):
        with accelerator.accumulate(wrapped):
            with step():  # pruner.step: micro-batches of one optimizer step see the same α
                accelerator.backward(nn.functional.cross_entropy(wrapped(batch), target))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(wrapped.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
    return 100 * (model.cpu()(images[1297:]).argmax(1) != labels[1297:]).float().mean().item()


if __name__ == "__main__":
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    model = network(seed=1)
    pruner = SignPruner(model, method="aws", classifier="11", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        optimizer = pruner.attach(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        accelerator.print(f"{level}: test error {train(model, optimizer, pruner.step, epochs=5):.1f} %")
    if accelerator.is_main_process:
        pruner.signed_mask().save("accelerate_loop.safetensors")  # SignedMask.load reads it

    for use in (pruner.signed_mask(), pruner.mask):
        fresh = network(seed=2)
        use.apply_(fresh if use is not pruner.mask else fresh.state_dict())
        optimizer = torch.optim.SGD(fresh.parameters(), 0.1, momentum=0.9)
        pruner.signed_mask().keep(optimizer, fresh)  # pruned weights stay at 0
        accelerator.print(f"fresh network, {type(use).__name__}: test error {train(fresh, optimizer):.1f} %")
