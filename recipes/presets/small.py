"""Settings for a CPU: scikit-learn's digits and Fashion-MNIST. The paper uses neither."""

from dataclasses import replace

from harness.config import DataConfig, GemMinerConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


def digits() -> SearchConfig:
    """Return settings that train the dense network well before the first pruning."""
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
    """Return shorter schedules. The 36 trainings of the demo take five minutes on one core."""
    return replace(digits(), level_epochs=6, final=Schedule(epochs=20, lr_schedule="step"))


def digits_figure(network: str) -> SearchConfig:
    """Return the demo's schedules. One trial of `claims` takes about six minutes on one core."""
    return replace(
        digits_demo(),
        model=ModelConfig(name=network),
        data=DataConfig(name="digits", loader="memory"),
        # 96 epochs, the cost of a ticket at level 11
        gem_miner=GemMinerConfig(score_epochs=81, finetune=Schedule(15, "step")),
    )


def fashion_mnist() -> SearchConfig:
    """Return the paper's CIFAR settings with a shorter schedule, because the data are easier."""
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
    """Return settings for figures on 8,000 images of 14×14. A trial of `claims` takes about 45 minutes on one core."""
    return SearchConfig(
        data=DataConfig(name="fashion_mnist_small", loader="memory"),
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=6,
        level_epochs=3,
        num_levels=11,
        final=Schedule(epochs=12, lr_schedule="step"),
        global_batch_size=64,
        # 51 epochs, the cost of a ticket at level 11
        gem_miner=GemMinerConfig(score_epochs=36, finetune=Schedule(15, "step")),
    )
