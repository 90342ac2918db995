"""Find a winning sign on CIFAR-10: ResNet-20, 15 prunings to density 0.035.

For        what is not in the paper: the data and the network of much other work on tickets, Gem-Miner's among it
Expected   this recipe has not been run to the end by us
Cost       160 epochs of search, 100 for each final training
Data       python tools/prepare_data.py cifar10 --source cifar-10-binary.tar.gz --out data
Launch     accelerate launch recipes/aws_cifar10.py
           accelerate launch recipes/aws_cifar10.py --method gem_miner --densities 0.0372 0.0144 0.0059 \\
               --num-levels 2 --gem-miner.penalty 1e-4      # 1.44 %, as `reproduce.py gem_miner` has it
"""

from harness.cli.launch import run_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


def config(network: str = "resnet20") -> SearchConfig:
    """The paper's settings for CIFAR-100."""
    return SearchConfig(
        data=DataConfig(name="cifar10"),
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=10,
        level_epochs=10,
        num_levels=15,
        final=Schedule(epochs=100, lr_schedule="step"),
        global_batch_size=128,
        precision="auto",
    )


if __name__ == "__main__":
    run_search(__doc__, config())
