"""Test the examples for other training loops: their callbacks compute what a plain loop with `pruner.step` computes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from harness import SignPruner
from tests.recipes.launching import run

EXAMPLES = Path(__file__).resolve().parents[2] / "recipes" / "examples"
DENSITIES = [0.6, 0.3]
MICRO_BATCH, STEPS = 4, 3


def plain(
    model: nn.Module,
    optimizer_of: Callable[[], torch.optim.Optimizer],
    loss_of: Callable[[int], torch.Tensor],
    *,
    micro: int,
    clip: float | None,
    classifier: str,
) -> SignPruner:
    """Search in a plain loop.

    Args:
        optimizer_of: Returns a new optimizer.
        loss_of: Returns the loss of a micro-batch, by index.
        micro: Micro-batches of a step.
        clip: Largest norm of the gradient. None: no clipping.
    """
    # Micro-batches of a step share one block, and so one α.
    pruner = SignPruner(model, classifier=classifier, seed=3)
    for _ in pruner.levels(DENSITIES):
        optimizer = pruner.attach(optimizer_of())
        for step in range(STEPS):
            with pruner.step():
                for index in range(step * micro, (step + 1) * micro):
                    (loss_of(index) / micro).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return pruner


def assert_equal(pruner: SignPruner, model: nn.Module, expected: SignPruner, reference: nn.Module) -> None:
    assert pruner.mask.density == pytest.approx(DENSITIES[-1], abs=1e-3)
    assert pruner.mask.equal(expected.mask)
    assert pruner.signed_mask().digest == expected.signed_mask().digest
    for (name, own), (_, wanted) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.equal(own, wanted), name


def samples(micro: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    count = STEPS * micro * MICRO_BATCH
    return torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator)


@pytest.mark.long
@pytest.mark.parametrize(("micro", "clip"), [(1, 0.5), (2, 0.5)])
def test_the_callback_of_lightning_has_the_bits_of_a_plain_loop(micro: int, clip: float | None) -> None:
    # Phase: the example's callback and module.
    pl = pytest.importorskip("pytorch_lightning")
    from recipes.examples.lightning_callback import Classifier, PruneSigns

    images, labels = samples(micro, 64)
    data = list(zip(images, labels, strict=True))
    module = Classifier(seed=1)
    pruner = SignPruner(module.net, classifier="3", seed=3)
    for _ in pruner.levels(DENSITIES):
        options = {"max_epochs": 1, "accelerator": "cpu", "barebones": True, "gradient_clip_val": clip}
        trainer = pl.Trainer(**options, accumulate_grad_batches=micro, callbacks=[PruneSigns(pruner)])
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=MICRO_BATCH))

    # Phase: the same in a plain loop.
    reference = Classifier(seed=1)

    def loss_of(index: int) -> torch.Tensor:
        part = slice(index * MICRO_BATCH, (index + 1) * MICRO_BATCH)
        return nn.functional.cross_entropy(reference.net(images[part]), labels[part])

    expected = plain(reference.net, reference.configure_optimizers, loss_of, micro=micro, clip=clip, classifier="3")
    assert_equal(pruner, module.net, expected, reference.net)


@pytest.mark.long
@pytest.mark.parametrize("micro", [2])
def test_the_callback_of_trainer_has_the_bits_of_a_plain_loop(tmp_path: Path, micro: int) -> None:
    # Phase: the example's callback and network.
    pytest.importorskip("transformers")
    from transformers import Trainer, TrainingArguments

    from recipes.examples.hf_trainer_callback import PruneSignsCallback, network

    images, labels = samples(micro, 1, 8, 8)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    options = {
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": micro,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "output_dir": str(tmp_path),
    }
    model = network(seed=1)
    pruner = SignPruner(model, classifier="classifier", seed=3)
    for _ in pruner.levels(DENSITIES):
        optimizers = torch.optim.AdamW(model.parameters(), 1e-3), None
        arguments = TrainingArguments(**options, max_grad_norm=0)
        Trainer(
            model,
            arguments,
            train_dataset=data,
            optimizers=optimizers,
            callbacks=[PruneSignsCallback(pruner, max_norm=0.5)],
        ).train()

    # Phase: the same in a plain loop.
    reference = network(seed=1)

    def loss_of(index: int) -> torch.Tensor:
        part = slice(index * MICRO_BATCH, (index + 1) * MICRO_BATCH)
        return reference(pixel_values=images[part], labels=labels[part]).loss

    expected = plain(
        reference,
        lambda: torch.optim.AdamW(reference.parameters(), 1e-3),
        loss_of,
        micro=micro,
        clip=0.5,
        classifier="classifier",
    )
    assert_equal(pruner, model, expected, reference)

    # Phase: clipping by Trainer would come too early, so the callback refuses it.
    again = SignPruner(network(seed=1), classifier="classifier")
    with pytest.raises(ValueError, match="max_grad_norm=0"):
        PruneSignsCallback(again).on_train_begin(TrainingArguments(**options), None, None, optimizer=None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[a-z]*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_launch_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 65
    assert re.search(rf"^Launch     .*recipes/examples/{path.name}$", text, re.M)


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain_loop", "accelerate_loop"])
def test_help_of_an_example_explains_it_and_trains_nothing(tmp_path: Path, name: str) -> None:
    said = run(tmp_path, sys.executable, str(EXAMPLES / f"{name}.py"), "--help")
    assert said.startswith(f"usage: {name}.py") and "\nShows      SignPruner" in said and "test error 0" not in said
    assert list(tmp_path.iterdir()) == []
