"""Find a winning sign on Tiny-ImageNet: 15 prunings to density 0.035 (paper, Figure 3).

Networks   ResNet-50 (the default), MobileNetV2, ShuffleNet, EfficientNet-B0; --network NAME takes the paper's learning
           rate for it
Expected   the paper's curves; it prints no table (this recipe has not been run to the end by us)
Cost       160 epochs of search, 100 for each final training
Data       python tools/prepare_data.py tiny_imagenet --source tiny-imagenet-200.zip --out data
Launch     accelerate launch recipes/aws_tiny_imagenet.py
           accelerate launch recipes/aws_tiny_imagenet.py --network mobilenet_v2_cifar --data.loader memory
"""

from harness.cli.launch import run_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig

LEARNING_RATES = {
    "resnet50_cifar": 0.1,
    "mobilenet_v2_cifar": 0.05,
    "shufflenet_cifar": 0.1,
    "efficientnet_b0_cifar": 0.1,
}


def config(network: str = "resnet50_cifar") -> SearchConfig:
    """Paper, section 4.1: SGD, batch 128, 10 + 15·10 epochs, 100 final with ×0.1 at 50 and 75."""
    return SearchConfig(
        data=DataConfig(name="tiny_imagenet", num_workers=-1),
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=LEARNING_RATES[network], momentum=0.9, weight_decay=5e-4),
        warmup_epochs=10,
        level_epochs=10,
        num_levels=15,
        final=Schedule(epochs=100, lr_schedule="step"),
        global_batch_size=128,
        precision="auto",
    )


if __name__ == "__main__":
    run_search(__doc__, [config(network) for network in LEARNING_RATES])
