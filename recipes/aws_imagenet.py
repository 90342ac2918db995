"""Find a winning sign on ImageNet: 10 prunings to density 0.107 (paper, Tables 1 and 2).

Networks   ResNet-50 (the default), MobileNetV2, MLP-Mixer (`mlp_mixer_wide`: its usual hidden sizes, not the paper's);
           --network NAME takes the paper's optimizer, batch size and final epochs for it
Expected   top-1 accuracy in %, dense and from the signed mask of AWS, mean ± sd of three trials:
           ResNet-50    75.26 ± 0.27; 74.65 ± 0.20 at density 0.27, 73.65 ± 0.12 at 0.14
           MobileNetV2  69.42 ± 0.41; 68.66 ± 0.24 at density 0.41, 66.02 ± 0.29 at 0.21
           MLP-Mixer    59.57 ± 0.12; 59.17 ± 0.19 at density 0.21, 58.62 ± 0.35 at 0.11
           (the paper's numbers; this recipe has not been run to the end by us)
Cost       70 epochs of search, 120 (MLP-Mixer: 200) for each final training
Data       python tools/prepare_data.py imagenet --source ilsvrc/imagenet-1k --out data
           or --source DIRECTORY with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz
Launch     accelerate launch recipes/aws_imagenet.py
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/aws_imagenet.py
           accelerate launch recipes/aws_imagenet.py --network mlp_mixer
"""

from typing import NamedTuple

from harness.cli.launch import run_search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig


class Settings(NamedTuple):
    """What differs from network to network."""

    optim: OptimConfig
    global_batch_size: int
    final_epochs: int


_MIXER = Settings(OptimConfig(name="adam", lr=1e-3, weight_decay=5e-5), global_batch_size=512, final_epochs=200)
SETTINGS = {
    "resnet50": Settings(OptimConfig(name="adam", lr=1e-3, weight_decay=1e-5), 256, 120),
    "mobilenet_v2": Settings(OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-5), 256, 120),
    "mlp_mixer": _MIXER,
    "mlp_mixer_wide": _MIXER,
}


def config(network: str = "resnet50") -> SearchConfig:
    """Paper, section 4.1: 20 + 10·5 epochs, then 120 or 200 final ones with cosine decay."""
    settings = SETTINGS[network]
    return SearchConfig(
        data=DataConfig(name="imagenet", num_workers=-1),
        model=ModelConfig(name=network),
        optim=settings.optim,
        warmup_epochs=20,
        level_epochs=5,
        num_levels=10,
        final=Schedule(epochs=settings.final_epochs, lr_schedule="cosine"),
        global_batch_size=settings.global_batch_size,
        precision="auto",
    )


if __name__ == "__main__":
    run_search(__doc__, [config(network) for network in SETTINGS])
