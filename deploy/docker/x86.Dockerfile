# Export, check and run on a desktop or server, on the CPU: torch, ONNX Runtime and OpenVINO.
#   docker build -f deploy/docker/x86.Dockerfile -t ovsdino:x86 .
#   docker run --rm -v "$PWD:/work" ovsdino:x86 segment street.jpg --classes "road, car, sky"
# PyPI's torch for x86 brings CUDA's libraries, some 5 GB; TORCH_INDEX names another index, such as PyTorch's own of
# CPU builds.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends build-essential libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1
ARG TORCH_INDEX=""
WORKDIR /opt/source
COPY . .
# Versions are bounded in pyproject.toml.
# hadolint ignore=DL3013
RUN if [ -n "${TORCH_INDEX}" ]; then pip install --index-url "${TORCH_INDEX}" torch torchvision; fi \
    && pip install ".[torch,openvino]" "onnx>=1.21" onnxscript "opencv-python-headless>=4.8.1.78" \
    && ovsdino models

WORKDIR /work
ENTRYPOINT ["ovsdino"]
CMD ["doctor"]
