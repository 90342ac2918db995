# The project on the same setup script as `make`, for CPU and CUDA alike: PyTorch's wheels bring CUDA with them, so a
# host with NVIDIA's container toolkit only adds `--gpus all`.
#
#   docker build -t signed-tickets .
#   docker run --rm -it -v "$PWD:/app" signed-tickets make demo
#   docker run --rm -it -v "$PWD:/app" --gpus all --ipc host signed-tickets accelerate launch recipes/aws_imagenet.py
#
# With the clone mounted, code is the clone's own, and data, runs and MLflow's store stay there when the container goes.
#
# Any Debian or Ubuntu base does, NVIDIA's among them: --build-arg BASE=nvidia/cuda:<version>-base-ubuntu24.04
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV VENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app

# Each layer needs no more than what is copied before it, so that an edit of the code rebuilds none of them.
COPY tools/setup.sh tools/
RUN tools/setup.sh system && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY harness/__init__.py harness/
RUN tools/setup.sh venv

# make calls the setup script elsewhere, so the script does not bring it; git tells each run the code's version, also when
# the mounted clone belongs to another user than the container's.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git make && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /app
COPY . .
CMD ["make"]
