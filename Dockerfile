# Targets: `serve` (the last, what a plain build makes; no torch) and `export` (torch).
# Build arguments: EXTRA=gpu has onnxruntime-gpu and CUDA's libraries in `serve`; never run on a GPU.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS serve-environment
ARG EXTRA=cpu
WORKDIR /opt
COPY constraints.txt ./
RUN python -m venv --without-pip lstmserve
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python lstmserve/bin/python install -c constraints.txt \
        "lstmserve[${EXTRA},store] @ file://$(ls /dist/*.whl)" \
    # 36 MB of the libraries' own tests
    && find lstmserve/lib -type d \( -path '*/onnx/backend/test' -o -path '*/numpy/*/tests' \) \
        -prune -exec rm -r {} +

FROM ${PYTHON_IMAGE} AS export-environment
# The only index from which pip takes torch, which has no CUDA. With a second index, pip would take
# 5 GB of CUDA from that one whenever this one cannot be reached.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt
COPY constraints.txt ./
RUN python -m venv --without-pip lstmserve
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python lstmserve/bin/python install -c constraints.txt --no-deps \
        --index-url "${TORCH_INDEX}" torch \
    || { echo "No torch from TORCH_INDEX=${TORCH_INDEX}: is it reachable, and does it have the" \
        "version of constraints.txt? Another index: --build-arg TORCH_INDEX=URL" >&2; exit 1; }
COPY --from=wheel /dist /dist
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python lstmserve/bin/python install -c constraints.txt \
        "lstmserve[export] @ file://$(ls /dist/*.whl)"

# What both images share: an unprivileged user, and folders of that user for a store or a model.
FROM ${PYTHON_IMAGE} AS base
RUN install -d -o 10001 -g 10001 /var/lib/lstmserve /models
ENV PATH=/opt/lstmserve/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    LSTMSERVE_MODELS=/models
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["lstmserve"]

FROM base AS export
COPY --from=export-environment /opt/lstmserve /opt/lstmserve
CMD ["export", "--help"]

# In a container only the published ports can be reached: publish them on 127.0.0.1
# (docker run -p 127.0.0.1:50051:50051), or give LSTMSERVE_TLS_CERT, _TLS_KEY and _TOKENS.
FROM base AS serve
ENV LSTMSERVE_LISTEN=0.0.0.0:50051 \
    LSTMSERVE_METRICS=0.0.0.0:9464 \
    LSTMSERVE_INSECURE=true
EXPOSE 50051 9464
COPY --from=serve-environment /opt/lstmserve /opt/lstmserve
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["lstmserve", "health"]
CMD ["serve"]
