"""Find a winning sign on Fashion-MNIST: ResNet-20, 10 prunings to density 0.107.

For        the smallest data set that shows more than toy behaviour; the paper has no Fashion-MNIST
Expected   not known: we have not run this recipe to the end
Time       55 epochs of search and 30 for each final training; an epoch takes about 200 s on two CPU cores
Hardware   a CPU, or one GPU with --precision bf16
Data       python tools/prepare_data.py fashion_mnist --out data      (Debian: apt-get install dataset-fashion-mnist)
Launch     accelerate launch recipes/aws_fashion_mnist.py
"""

from harness.cli.commands import run_search
from recipes.presets.small import fashion_mnist

if __name__ == "__main__":
    run_search(__doc__, fashion_mnist())
