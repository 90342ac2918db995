"""Find a winning sign on Fashion-MNIST: ResNet-20, 10 prunings to density 0.107.

Figure     none. The paper does not use Fashion-MNIST. It is the smallest data set that is harder than a toy
Networks   ResNet-20 (default). --network selects any other network with these settings
Expected   unknown, because this recipe has not been run to the end
Time       55 epochs of search, 30 epochs for each final training. One epoch takes about 200 s on two CPU cores
Hardware   a CPU, or one GPU with --precision bf16
Data       python tools/prepare_data.py fashion_mnist --out data
           # needs the Debian package dataset-fashion-mnist, or --source
Launch     python recipes/aws_fashion_mnist.py
"""

from harness.cli.commands import run_search
from recipes.presets.small import fashion_mnist

if __name__ == "__main__":
    run_search(__doc__, fashion_mnist())
