"""Settings of the paper (section 4.1) for CIFAR-100, Tiny-ImageNet and ImageNet, and the same settings for CIFAR-10.

One setting is not the paper's: precision "auto" is bf16 on a GPU that supports it. `--precision no` gives the paper's
float32. The precision is in the key.
"""

from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig

# Learning rate of each network: 0.05 for MobileNetV2, 0.1 for all others.
TINY_IMAGENET = {
    "resnet50_cifar": 0.1,
    "mobilenet_v2_cifar": 0.05,
    "shufflenet_cifar": 0.1,
    "efficientnet_b0_cifar": 0.1,
    "efficientnet_b0_cifar_drop_connect": 0.1,  # not in the paper: the authors' scripts never apply it
}
CIFAR100 = TINY_IMAGENET | {"resnet32": 0.1, "vgg11_bn_cifar": 0.1}

# Optimizer, batch size and epochs of a final training for each network.
_MIXER = (OptimConfig(name="adam", lr=1e-3, weight_decay=5e-5), 512, 200)
IMAGENET = {
    "resnet50": (OptimConfig(name="adam", lr=1e-3, weight_decay=1e-5), 256, 120),
    "mobilenet_v2": (OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-5), 256, 120),
    "mlp_mixer": _MIXER,
    "mlp_mixer_wide": _MIXER,
}


def cifar10(network: str = "resnet20") -> SearchConfig:
    """Return the settings of CIFAR-100 for CIFAR-10, which the paper does not use."""
    return _cifar(DataConfig(name="cifar10"), network, 0.1)


def cifar100(network: str = "resnet50_cifar") -> SearchConfig:
    """Return settings with 10 + 15·10 epochs of search and 100 final epochs, with ×0.1 at 50 and 75."""
    return _cifar(DataConfig(name="cifar100"), network, CIFAR100[network])


def tiny_imagenet(network: str = "resnet50_cifar") -> SearchConfig:
    """Return the settings of CIFAR-100 for Tiny-ImageNet, as in the paper."""
    return _cifar(DataConfig(name="tiny_imagenet", num_workers=-1), network, TINY_IMAGENET[network])


def _cifar(data: DataConfig, network: str, lr: float) -> SearchConfig:
    return SearchConfig(
        data=data,
        model=ModelConfig(name=network),
        optim=OptimConfig(name="sgd", lr=lr, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=10,
        level_epochs=10,
        num_levels=15,
        final=Schedule(epochs=100, lr_schedule="step"),
        global_batch_size=128,
        precision="auto",
    )


def imagenet(network: str = "resnet50") -> SearchConfig:
    """Return settings with 20 + 10·5 epochs of search and 120 or 200 final epochs, with cosine decay."""
    optim, global_batch_size, final_epochs = IMAGENET[network]
    return SearchConfig(
        data=DataConfig(name="imagenet", num_workers=-1),
        model=ModelConfig(name=network),
        optim=optim,
        warmup_epochs=20,
        level_epochs=5,
        num_levels=10,
        final=Schedule(epochs=final_epochs, lr_schedule="cosine"),
        global_batch_size=global_batch_size,
        precision="auto",
        evaluate_every=5,
    )
