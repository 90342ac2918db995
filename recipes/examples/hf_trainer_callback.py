"""Find a signed mask with AWS in the Trainer of Hugging Face, and use it on a fresh network.

Shows      PruneSigns, a TrainerCallback that runs each step of a vision transformer under SignPruner
Prints     density and test error of each level, then of fresh networks: with the signs, and with the mask alone
Data       scikit-learn's digits, 1,797 real images of 8×8 pixels. Time: 30 seconds on one core
Launch     python recipes/examples/hf_trainer_callback.py
"""

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from harness import SignPruner

digits = load_digits()
images, labels = torch.tensor(digits.images).float()[:, None] / 8 - 1, torch.tensor(digits.target)
train = [{"pixel_values": image, "labels": label} for image, label in zip(images[:1297], labels[:1297], strict=True)]
SHAPE = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10, "hidden_size": 64}
CONFIG = ViTConfig(**SHAPE, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
# Trainer would clip before end_step. So max_grad_norm is 0, and PruneSigns clips.
ARGUMENTS = TrainingArguments(num_train_epochs=5, per_device_train_batch_size=32, learning_rate=1e-3, max_grad_norm=0, use_cpu=True, save_strategy="no", disable_tqdm=True, report_to="none")


class PruneSigns(TrainerCallback):
    def __init__(self, pruner, max_norm):
        self.pruner, self.max_norm = pruner, max_norm

    def on_train_begin(self, args, state, control, optimizer, **_):
        if args.max_grad_norm:
            raise ValueError("Trainer clips gradients before PruneSigns can scale them; set max_grad_norm=0, and give PruneSigns(pruner, max_norm=1.0)")
        self.pruner.attach(optimizer)

    def on_step_begin(self, args, state, control, **_):
        self.pruner.begin_step()

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.pruner.end_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
