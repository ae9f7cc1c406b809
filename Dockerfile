# detect serve in a container, on the CPU or a GPU:
#
#   docker build -t detect .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/bccd/checkpoints:/models:ro" detect --ckpt /models/best.ckpt
#   docker run --gpus all …                # on a GPU, with NVIDIA's container toolkit
#
# torch's wheels bring CUDA with them, so that both need only Python. For an image of a fifth of the size, without CUDA,
# give the address of torch's wheels for the CPU: --build-arg EXTRA_INDEX=ADDRESS.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG EXTRA_INDEX=""
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY detect detect
RUN python -m venv /opt/detect \
    && /opt/detect/bin/pip install --no-cache-dir ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} '.[serve,onnx]'

FROM ${BASE}
COPY --from=build /opt/detect /opt/detect
RUN useradd --uid 10001 --no-create-home detect
USER 10001
# The file system may be read-only but for /tmp, and the user any number (torch looks for its name without the last).
ENV PATH=/opt/detect/bin:$PATH HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["detect", "serve", "--host", "0.0.0.0"]
CMD ["--ckpt", "/models/best.ckpt"]
