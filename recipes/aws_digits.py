"""Find a winning sign on scikit-learn's digits: ResNet-20, 9 prunings to density 0.134.

For        a first look, and for tests: real images, minutes on a laptop
Expected   dense test error at most 2 %
Data       python tools/prepare_data.py digits --out data
Launch     accelerate launch recipes/aws_digits.py
           accelerate launch recipes/aws_digits.py --method lrr --num-levels 5 --init-seed 7
"""

from harness.cli.launch import run_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


def config() -> SearchConfig:
    """Settings tuned so that the dense network is well trained first."""
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


if __name__ == "__main__":
    run_search(__doc__, config())
