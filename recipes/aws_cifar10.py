"""Find a winning sign on CIFAR-10: ResNet-20, 15 prunings to density 0.035.

For        comparison with other work on tickets, Gem-Miner's among it; the paper has no CIFAR-10
Expected   not known: we have not run this recipe to the end
Time       160 epochs of search and 100 for each final training; not measured
Hardware   one GPU; bf16 where it has it
Data       python tools/prepare_data.py cifar10 --source cifar-10-binary.tar.gz --out data
Launch     accelerate launch recipes/aws_cifar10.py
           accelerate launch recipes/aws_cifar10.py --method gem_miner --densities 0.0372 0.0144 0.0059 \\
               --num-levels 2 --gem-miner.penalty 1e-4 --gem-miner.num-train 45000
               # 1.44 %, as `reproduce.py gem_miner` has it
"""

from harness.cli.commands import run_search
from recipes.presets.paper import cifar10

if __name__ == "__main__":
    run_search(__doc__, cifar10())
