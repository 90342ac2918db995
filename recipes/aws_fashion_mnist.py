"""Find a winning sign on Fashion-MNIST: ResNet-20, 10 prunings to density 0.107.

For        the smallest data set on which more than toy behaviour shows
Data       python tools/prepare_data.py fashion_mnist --out data      (Debian: apt-get install dataset-fashion-mnist)
Launch     accelerate launch recipes/aws_fashion_mnist.py
"""

from harness.cli.launch import run_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


def config() -> SearchConfig:
    """The paper's CIFAR settings; the schedule is shorter, as the data are easier."""
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


if __name__ == "__main__":
    run_search(__doc__, config())
