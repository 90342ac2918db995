"""Find a winning sign on CIFAR-100: 15 prunings to density 0.035.

Figure     Figures 2 to 6 of the paper
Networks   resnet50_cifar (default), mobilenet_v2_cifar, shufflenet_cifar, efficientnet_b0_cifar (Figure 3)
           resnet32 (Figure 4), vgg11_bn_cifar (Figure 6)
           --network NAME selects a network and the paper's learning rate for it
Expected   the paper's curves, which have no printed numbers. This recipe has not been run to the end
Time       160 epochs of search, 100 epochs for each final training. Hours are not measured
Hardware   one GPU. bf16 is used if the GPU supports it, with other keys. --precision no: float32, as in the paper
Data       python tools/prepare_data.py cifar100 --source cifar-100-binary.tar.gz --out data
Launch     python recipes/aws_cifar100.py
           python recipes/aws_cifar100.py --network mobilenet_v2_cifar
           python recipes/aws_cifar100.py --network resnet32 --model.width 32 --method lrr
"""

from harness.cli.commands import run_search
from recipes.presets.paper import CIFAR100, cifar100

if __name__ == "__main__":
    run_search(__doc__, [cifar100(network) for network in CIFAR100])
