"""Find a signed mask with AWS in the Trainer of Hugging Face, and use it on a fresh network.

Shows      PruneSigns, a TrainerCallback around each step; density and test error of each level and of fresh networks
Data       scikit-learn's digits, 1,797 real images of 8×8 pixels. Time: 30 seconds on one core
Launch     python recipes/examples/hf_trainer_callback.py
"""

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from harness import SignPruner


class PruneSigns(TrainerCallback):
    def __init__(self, pruner, max_norm=1.0):
        self.pruner, self.max_norm = pruner, max_norm

    def on_train_begin(self, args, state, control, optimizer, **_):
        if args.max_grad_norm:
            raise ValueError("Trainer clips before end_step; set max_grad_norm=0, and give PruneSigns a max_norm")
        self.pruner.attach(optimizer)

    def on_step_begin(self, args, state, control, **_):
        self.pruner.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.pruner.end_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)


def network(seed):
    torch.manual_seed(seed)
    size = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(**size, num_hidden_layers=2, num_attention_heads=4, num_labels=10))


def fit(model, optimizer, *callbacks):
    images, labels = torch.tensor(load_digits().images).float()[:, None] / 8 - 1, torch.tensor(load_digits().target)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    args = TrainingArguments(num_train_epochs=5, per_device_train_batch_size=32, max_grad_norm=0, use_cpu=True, **quiet)
    Trainer(model, args, train_dataset=data[:1297], optimizers=(optimizer, None), callbacks=[*callbacks]).train()
    return 100 * (model.eval()(images[1297:]).logits.argmax(1) != labels[1297:]).float().mean()


if __name__ == "__main__":
    model = network(seed=1)
    pruner = SignPruner(model, method="aws", classifier="classifier", seed=1)
    for level in pruner.levels(densities=[0.5, 0.25, 0.1]):
        error = fit(model, torch.optim.AdamW(model.parameters(), 1e-3), PruneSigns(pruner))
        print(f"{level}: test error {error:.1f} %")
    pruner.signed_mask().save("hf_trainer_callback.safetensors")  # SignedMask.load reads it
    for use in (pruner.signed_mask(), pruner.mask):
        fresh = network(seed=2)
        use.apply_(fresh.state_dict() if use is pruner.mask else fresh)
        optimizer = torch.optim.AdamW(fresh.parameters(), 1e-3)
        pruner.signed_mask().keep(optimizer, fresh)  # pruned weights stay at 0
        print(f"fresh network, {type(use).__name__}: test error {fit(fresh, optimizer):.1f} %")
