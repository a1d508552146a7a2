# Runtime of exported models on a Jetson with JetPack 6 (L4T r36, Ubuntu 22.04, Python 3.10, CUDA 12.6, TensorRT 10.3).
# On the board, from the root of the checkout:
#   docker build -f deploy/docker/jetpack6.Dockerfile -t ovsdino:jetpack6 .
#   docker run --rm -it --runtime nvidia --device /dev/video0 -v "$PWD/exports:/exports" ovsdino:jetpack6 \
#     stream /dev/video0 --engine /exports/nano_fp16_sm87.engine --bank /exports/bank.safetensors
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       build-essential python3-dev python3-libnvinfer python3-opencv python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/ovsdino/bin:/usr/local/cuda/bin:${PATH} \
    PIP_NO_CACHE_DIR=1
# It sees the system's tensorrt and cv2, which cannot come from pip.
RUN python3 -m venv --system-site-packages /opt/ovsdino \
    && pip install --upgrade "pip>=24,<27"

WORKDIR /opt/source
COPY . .
# Versions are bounded in pyproject.toml. As many compilers run at once as memory allows (scripts/build_native.py).
# hadolint ignore=DL3013
RUN OVSDINO_CUDA=1 OVSDINO_CUDA_ARCHS=87 pip install ".[jetson]" \
    && ovsdino models

WORKDIR /exports
ENTRYPOINT ["ovsdino"]
CMD ["doctor"]
