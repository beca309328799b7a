# Trains, tests and exports on NVIDIA GPUs, or on a CPU. From the project's folder:
#   docker build -f containers/training.Dockerfile -t classifier-training .
#   docker run --rm --init --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v ~/my-photos:/data:ro -v ~/runs:/runs \
#       classifier-training training.py --DATASET_FOLDER /data --LOCAL_ROOT /runs --TENSORBOARD_FOLDER /runs/tensorboard
# PyTorch's packages bring CUDA's libraries: of NVIDIA, the host needs the driver and the NVIDIA Container Toolkit.

# A tag moves with its security updates; a build that must be the same years later names the digest: ...@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Multi-label image classification: training" \
      org.opencontainers.image.licenses="Apache-2.0"
# torch.compile (COMPILE) makes programs while it runs, and compiles them
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# pip's own, unless a mirror is named
ARG PIP_INDEX_URL
WORKDIR /app
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements*.txt ./
RUN pip install -r requirements-demo.txt -r requirements-export.txt
COPY . .
# Any user may run it (--user). One that the image does not know has no name and no home, and torch asks for both.
ENV HOME=/tmp USER=trainer PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python"]
CMD ["training.py", "--help"]
