"""Find a winning sign on CIFAR-100: 15 prunings to density 0.035 (paper, Figures 2 to 6).

Networks   ResNet-50 (the default), MobileNetV2, ShuffleNet, EfficientNet-B0 (Figure 3), ResNet-32 (Figure 4),
           VGG11-bn (Figure 6); --network NAME takes the paper's learning rate for it
Expected   the paper's curves, of which it prints no numbers; we have not run this recipe to the end
Time       160 epochs of search and 100 for each final training; not measured
Hardware   one GPU; bf16 where it has it
Data       python tools/prepare_data.py cifar100 --source cifar-100-binary.tar.gz --out data
Launch     accelerate launch recipes/aws_cifar100.py
           accelerate launch recipes/aws_cifar100.py --network mobilenet_v2_cifar
           accelerate launch recipes/aws_cifar100.py --network resnet32 --model.width 32 --method lrr
"""

from harness.cli.commands import run_search
from recipes.presets.paper import CIFAR100, cifar100

if __name__ == "__main__":
    run_search(__doc__, [cifar100(network) for network in CIFAR100])
