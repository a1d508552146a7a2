# Runtime of exported models on a Jetson with JetPack 7.2 (Ubuntu 24.04, Python 3.12, CUDA 13.2, TensorRT 10.16).
# On the board, from the root of the checkout:
#   docker build -f deploy/docker/jetpack7.Dockerfile -t ovsdino:jetpack7 .
#   docker run --rm -it --runtime nvidia --device /dev/video0 -v "$PWD/exports:/exports" ovsdino:jetpack7 \
#     stream /dev/video0 --engine /exports/nano_fp16_sm87.engine --bank /exports/bank.safetensors
# JetPack 7 runs the containers of Arm servers. TensorRT comes from NVIDIA's apt sources of the base, in the version of
# JetPack: an engine belongs to one.
ARG BASE=nvcr.io/nvidia/cuda:13.2.0-devel-ubuntu24.04
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       build-essential python3-dev libnvinfer-bin python3-libnvinfer python3-opencv python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/ovsdino/bin:/usr/local/cuda/bin:${PATH} \
    PIP_NO_CACHE_DIR=1
# It sees the system's tensorrt and cv2, which cannot come from pip.
RUN python3 -m venv --system-site-packages /opt/ovsdino \
    && pip install --upgrade "pip>=24,<27"

# 87: Orin. 110: Thor.
ARG ARCHS=87
WORKDIR /opt/source
COPY . .
# Versions are bounded in pyproject.toml. As many compilers run at once as memory allows (scripts/build_native.py).
# hadolint ignore=DL3013
RUN OVSDINO_CUDA=1 OVSDINO_CUDA_ARCHS=${ARCHS} pip install ".[jetson]" \
    && ovsdino models

WORKDIR /exports
ENTRYPOINT ["ovsdino"]
CMD ["doctor"]
