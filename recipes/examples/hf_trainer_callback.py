"""Find a signed mask by a callback of Hugging Face's Trainer, and use it.

Shows      PruneSignsCallback, a callback around each step of a ConvNeXt. Each level is one trainer.train
Prints     test error on scikit-learn's digits of each level, then of fresh networks: with signs, with the mask alone
Launch     python recipes/examples/hf_trainer_callback.py
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch
from sklearn.datasets import load_digits
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainerCallback, TrainingArguments

from harness import SignPruner


class PruneSignsCallback(TrainerCallback):
    def __init__(self, pruner, max_norm=1.0):
        self.pruner, self.max_norm = pruner, max_norm

    def on_train_begin(self, args, state, control, optimizer, **_):
        if args.max_grad_norm:
            raise ValueError("Trainer clips before end_step; set max_grad_norm=0, and give the callback a max_norm")
        self.pruner.attach(optimizer)

    def on_step_begin(self, args, state, control, **_):
        self.pruner.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.pruner.end_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)


def network(seed):
    torch.manual_seed(seed)
    size = {"num_channels": 1, "image_size": 8, "patch_size": 1, "num_stages": 2, "depths": [1, 1], "num_labels": 10}
    return ConvNextForImageClassification(ConvNextConfig(**size, hidden_sizes=[32, 64], layer_scale_init_value=1.0))


def fit(model, optimizer, *callbacks):
    images, labels = torch.tensor(load_digits().images).float()[:, None] / 8 - 1, torch.tensor(load_digits().target)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    options = {"num_train_epochs": 5, "per_device_train_batch_size": 32, "max_grad_norm": 0, "use_cpu": True}
    args = TrainingArguments(**options, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True)
    Trainer(model, args, train_dataset=data[:1297], optimizers=(optimizer, None), callbacks=[*callbacks]).train()
    return 100 * (model.eval()(images[1297:]).logits.argmax(1) != labels[1297:]).float().mean()


if __name__ == "__main__":
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    model = network(seed=1)
    pruner = SignPruner(model, method="aws", classifier="classifier", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        error = fit(model, torch.optim.AdamW(model.parameters(), 3e-3), PruneSignsCallback(pruner))
        print(f"{level}: test error {error:.1f} %")
    pruner.signed_mask().save("hf_trainer_callback.safetensors")  # SignedMask.load reads it
    for use in (pruner.signed_mask(), pruner.mask):
        fresh = network(seed=2)
        use.apply_(fresh.state_dict() if use is pruner.mask else fresh)
        optimizer = torch.optim.AdamW(fresh.parameters(), 3e-3)
        pruner.signed_mask().keep(optimizer, fresh)  # pruned weights stay at 0
        print(f"fresh network, {type(use).__name__}: test error {fit(fresh, optimizer):.1f} %")
