"""Settings for data that a CPU can carry: scikit-learn's digits and Fashion-MNIST. None of them is in the paper."""

from dataclasses import replace

from harness.config import DataConfig, GemMinerConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


def digits() -> SearchConfig:
    """Return settings under which the dense network is well trained before it is pruned."""
    return SearchConfig(
        data=DataConfig(name="digits"),
        model=ModelConfig(name="resnet20"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=10,
        level_epochs=10,
        num_levels=9,
        final=Schedule(epochs=60, lr_schedule="step"),
        global_batch_size=64,
    )


def digits_demo() -> SearchConfig:
    """Return shorter schedules: all 36 trainings of the demo take five minutes on two cores."""
    return replace(digits(), level_epochs=6, final=Schedule(epochs=20, lr_schedule="step"))


def digits_figure(network: str) -> SearchConfig:
    """Return the demo's schedules: one trial of `claims` takes some six minutes of one core."""
    return replace(
        digits_demo(),
        model=ModelConfig(name=network),
        data=DataConfig(name="digits", loader="memory"),
        # 96 epochs: as many as a ticket costs at level 11
        gem_miner=GemMinerConfig(score_epochs=81, finetune=Schedule(15, "step")),
    )


def fashion_mnist() -> SearchConfig:
    """Return the paper's CIFAR settings with a shorter schedule, since the data are easier."""
    return SearchConfig(
        data=DataConfig(name="fashion_mnist"),
        model=ModelConfig(name="resnet20"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=5,
        level_epochs=5,
        num_levels=10,
        final=Schedule(epochs=30, lr_schedule="step"),
        global_batch_size=128,
    )


def fashion_mnist_figure(network: str) -> SearchConfig:
    """Return settings for 8,000 images of 14×14: one trial of `claims` takes some 45 minutes of one core."""
    return SearchConfig(
        data=DataConfig(name="fashion_mnist_small", loader="memory"),
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=6,
        level_epochs=3,
        num_levels=11,
        final=Schedule(epochs=12, lr_schedule="step"),
        global_batch_size=64,
        # 51 epochs: as many as a ticket costs at level 11
        gem_miner=GemMinerConfig(score_epochs=36, finetune=Schedule(15, "step")),
    )
