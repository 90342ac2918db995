"""Find a winning sign on Tiny-ImageNet: 15 prunings to density 0.035 (paper, Figure 3).

Networks   ResNet-50 (the default), MobileNetV2, ShuffleNet, EfficientNet-B0; --network NAME takes the paper's learning
           rate for it
Expected   the paper's curves, of which it prints no numbers; we have not run this recipe to the end
Time       160 epochs of search and 100 for each final training; not measured
Hardware   one GPU; bf16 where it has it
Data       python tools/prepare_data.py tiny_imagenet --source tiny-imagenet-200.zip --out data
Launch     accelerate launch recipes/aws_tiny_imagenet.py
           accelerate launch recipes/aws_tiny_imagenet.py --network mobilenet_v2_cifar --data.loader memory
"""

from harness.cli.commands import run_search
from recipes.presets.paper import TINY_IMAGENET, tiny_imagenet

if __name__ == "__main__":
    run_search(__doc__, [tiny_imagenet(network) for network in TINY_IMAGENET])
