"""Find a winning sign on Tiny-ImageNet: 15 prunings to density 0.035.

Figure     Figure 3 of the paper
Networks   resnet50_cifar (default), mobilenet_v2_cifar, shufflenet_cifar, efficientnet_b0_cifar
           --network NAME selects a network and the paper's learning rate for it
Expected   the paper's curves, which have no printed numbers. This recipe has not been run to the end
Time       160 epochs of search, 100 epochs for each final training. Hours are not measured
Hardware   one GPU. bf16 is used if the GPU supports it, with other keys. --precision no: float32, as in the paper
Data       python tools/prepare_data.py tiny_imagenet --source tiny-imagenet-200.zip --out data
Launch     python recipes/aws_tiny_imagenet.py
           python recipes/aws_tiny_imagenet.py --network mobilenet_v2_cifar --data.loader memory
"""

from harness.cli.commands import run_search
from recipes.presets.paper import TINY_IMAGENET, tiny_imagenet

if __name__ == "__main__":
    run_search(__doc__, [tiny_imagenet(network) for network in TINY_IMAGENET])
