# Serves a model on a CPU. From the project's folder:
#   docker build -f containers/serving.Dockerfile -t classifier-serving .
#   docker run --rm --init -p 127.0.0.1:8000:8000 -v "$PWD/exported_models:/models:ro" classifier-serving --MODEL_PATH /models/NAME.onnx
# What follows the image's name goes to serving.py: recipes, --NAME value. docs/deploying.md has the rest.

# A tag moves with its security updates; a build that must be the same years later names the digest: ...@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
# PyTorch without CUDA's libraries (0.2 GB instead of 3 GB); the index of a mirror that has the same wheels will do
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# packages that serving an ONNX file or a checkpoint does not import; for OpenVINO IR take openvino out of this list
ARG LEAVE_OUT="nncf|openvino|pandas|tabulate|tensorboard"
# pip's own, unless a mirror is named
ARG PIP_INDEX_URL
WORKDIR /build
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt requirements-export.txt requirements-serving.txt ./
RUN sed -i -E "/^($LEAVE_OUT)[<>=]/d" requirements*.txt \
    && grep -E '^torch' requirements.txt > torch.txt \
    && pip install --index-url "$TORCH_INDEX" -r torch.txt \
    && pip install -r requirements-serving.txt

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Multi-label image classification: serving" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages /venv /venv
COPY . /app
WORKDIR /app
# HOME is where libraries keep what they remember: with --read-only, /tmp is the only folder that may be written
ENV PATH=/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
# compiled here, since the server may not write into its folders
RUN python -m compileall -q . && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin server
USER 10001:10001
EXPOSE 8000
# The image has no curl. A server that computes for long still answers: /health does not wait for the model.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
# In this form serving.py gets the signal itself, answers the requests that have arrived, and ends with status 0.
ENTRYPOINT ["python", "serving.py", "--SERVING_HOST=0.0.0.0", "--LOCAL_ROOT=/tmp", "--MODEL_PATH=/models/model.onnx"]
