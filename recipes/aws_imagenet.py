"""Find a winning sign on ImageNet: 10 prunings to density 0.107 (paper, Tables 1 and 2).

Networks   ResNet-50 (the default), MobileNetV2, MLP-Mixer (`mlp_mixer_wide`: its usual hidden sizes, not the paper's);
           --network NAME takes the paper's optimizer, batch size and final epochs for it
Expected   top-1 accuracy in %, dense and from the signed mask of AWS, mean ± sd of three trials:
           ResNet-50    75.26 ± 0.27; 74.65 ± 0.20 at density 0.27, 73.65 ± 0.12 at 0.14
           MobileNetV2  69.42 ± 0.41; 68.66 ± 0.24 at density 0.41, 66.02 ± 0.29 at 0.21
           MLP-Mixer    59.57 ± 0.12; 59.17 ± 0.19 at density 0.21, 58.62 ± 0.35 at 0.11
           These are the paper's numbers; we have not run this recipe to the end.
Time       70 epochs of search and 120 (MLP-Mixer: 200) for each final training; not measured
Hardware   GPUs; bf16 where they have it
Data       python tools/prepare_data.py imagenet --source ilsvrc/imagenet-1k --out data
           or --source DIRECTORY with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz
Launch     accelerate launch recipes/aws_imagenet.py
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/aws_imagenet.py
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/aws_imagenet.py --sync-batchnorm
           accelerate launch recipes/aws_imagenet.py --network mlp_mixer

The paper has its 256 images on one GPU. On eight, each process has 32, and BatchNorm normalises by these alone;
--sync-batchnorm takes the statistics of all 256.
"""

from harness.cli.commands import run_search
from recipes.presets.paper import IMAGENET, imagenet

if __name__ == "__main__":
    run_search(__doc__, [imagenet(network) for network in IMAGENET])
