"""Find a winning sign on ImageNet with ResNet-50: 10 prunings to density 0.107 (paper, Table 2).

Expected   dense 75.26 ± 0.27 % top-1; signed mask of AWS 74.65 ± 0.20 at density 0.27 and 73.65 ± 0.12 at 0.14
           (the paper's numbers; this recipe has not been run to the end by us)
Cost       70 epochs of search, 120 for each final training
Data       python tools/prepare_data.py imagenet --source ilsvrc/imagenet-1k --out data
Launch     accelerate launch recipes/aws_imagenet.py
           accelerate launch --multi_gpu --num_processes 8 recipes/aws_imagenet.py --precision bf16
"""

from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.launch import run_search


def config() -> SearchConfig:
    """Paper, section 4.1: Adam 0.001, batch 256, 20 + 10·5 epochs, 120 final with cosine decay."""
    return SearchConfig(
        data=DataConfig(name="imagenet", num_workers=-1),
        model=ModelConfig(name="resnet50"),
        optim=OptimConfig(name="adam", lr=1e-3, weight_decay=1e-5),
        warmup_epochs=20,
        level_epochs=5,
        num_levels=10,
        final=Schedule(epochs=120, lr_schedule="cosine"),
        global_batch_size=256,
    )


if __name__ == "__main__":
    run_search(__doc__, config())
