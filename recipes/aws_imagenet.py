"""Find a winning sign on ImageNet: 10 prunings to density 0.107.

Figure     Tables 1 and 2 of the paper
Networks   resnet50 (default), mobilenet_v2, mlp_mixer
           mlp_mixer_wide is MLP-Mixer with its usual hidden sizes instead of the paper's
           --network NAME selects a network and the paper's optimizer, batch size and final epochs for it
Expected   top-1 accuracy (%) of the paper, mean ± sd of three trials: dense, then the signed mask of AWS
           ResNet-50     75.26 ± 0.27    74.65 ± 0.20 at density 0.27    73.65 ± 0.12 at 0.14
           MobileNetV2   69.42 ± 0.41    68.66 ± 0.24 at density 0.41    66.02 ± 0.29 at 0.21
           MLP-Mixer     59.57 ± 0.12    59.17 ± 0.19 at density 0.21    58.62 ± 0.35 at 0.11
           This recipe has not been run to the end
Time       70 epochs of search, 120 epochs (MLP-Mixer: 200) for each final training. Hours are not measured
Hardware   GPUs. bf16 is used if they support it, with other keys. --precision no: float32, as in the paper
Data       python tools/prepare_data.py imagenet --source ilsvrc/imagenet-1k --out data
           # or --source DIRECTORY with the archives
           # ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz
Launch     python recipes/aws_imagenet.py
           python recipes/aws_imagenet.py --network mlp_mixer
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/aws_imagenet.py
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/aws_imagenet.py --sync-batchnorm

The paper has 256 images on one GPU. On eight GPUs each process has 32 of them.
BatchNorm then uses the statistics of these 32. --sync-batchnorm uses those of all 256.
"""

from harness.cli.commands import run_search
from recipes.presets.paper import IMAGENET, imagenet

if __name__ == "__main__":
    run_search(__doc__, [imagenet(network) for network in IMAGENET])
