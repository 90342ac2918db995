"""Find a winning sign on CIFAR-10: ResNet-20, 15 prunings to density 0.035.

Figure     none. The paper does not use CIFAR-10. Use this recipe to compare with other work, such as Gem-Miner
Networks   ResNet-20 (default). --network selects any other network with these settings
Expected   unknown, because this recipe has not been run to the end
Time       160 epochs of search, 100 epochs for each final training. Hours are not measured
Hardware   one GPU. bf16 is used if the GPU supports it, with other keys. --precision no: float32, as in the paper
Data       python tools/prepare_data.py cifar10 --source cifar-10-binary.tar.gz --out data
Launch     python recipes/aws_cifar10.py
           python recipes/aws_cifar10.py --method gem_miner --densities 0.0372 0.0144 0.0059 \\
               --num-levels 2 --gem-miner.penalty 1e-4 --gem-miner.num-train 45000
               # density 1.44 %, with the settings of `reproduce.py gem_miner`
"""

from harness.cli.commands import run_search
from recipes.presets.paper import cifar10

if __name__ == "__main__":
    run_search(__doc__, cifar10())
