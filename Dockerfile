# The project on the same setup script as `make`, for CPU and CUDA alike: PyTorch's wheels bring CUDA with them (their
# version of it stands in constraints.txt), so a host needs NVIDIA's driver and container toolkit, and `--gpus all`.
#
#   docker build -t signed-tickets .
#   docker run --rm -it --init -u "$(id -u):$(id -g)" -v "$PWD:/app" signed-tickets make demo
#   docker run --rm -it --init -u "$(id -u):$(id -g)" -v "$PWD:/app" --gpus all --ipc host signed-tickets \
#       accelerate launch recipes/aws_imagenet.py
#
# With the clone mounted, code is the clone's own, and data, runs and MLflow's store stay there when the container goes.
# -u lets them belong to you, and any number does; without it the container is user 1000, never root.
#
# Any Debian or Ubuntu base does, NVIDIA's among them: --build-arg BASE=nvidia/cuda:<version>-base-ubuntu24.04
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# A user that the container has no account for still has a home for caches, and a name (PyTorch and MLflow ask for it).
ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    HOME=/home/app \
    USER=app \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app

# Each layer needs no more than what is copied before it, so that an edit of the code rebuilds none of them.
#
# make calls the setup script elsewhere, so the script does not bring it; git tells each run the code's version, also when
# the mounted clone belongs to another user than the container's. procps: pkill, for recipes/launch/slurm.sbatch.
COPY tools/setup.sh tools/
RUN tools/setup.sh system \
    && apt-get update -qq && apt-get install -y -qq --no-install-recommends git make procps && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /app
# pip wants a README to quote; an empty one, so that new words in the real one do not install everything again.
COPY pyproject.toml constraints.txt LICENSE ./
COPY harness/__init__.py harness/
COPY recipes/__init__.py recipes/
COPY signed_tickets/__init__.py signed_tickets/
RUN touch README.md && tools/setup.sh venv

COPY . .
RUN mkdir -p "$HOME" && chmod a+rwx /app "$HOME"
USER 1000:1000
CMD ["make"]
