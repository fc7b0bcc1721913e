# Fine-tunes, exports, verifies and publishes. Targets: cpu (default), cuda.
#   docker build -f docker/trainer.Dockerfile --target cpu -t tuneship/trainer:cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# --build-context wheels=FOLDER replaces it
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS system
# the wheels of llama.cpp link to libgomp
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=secret,id=apt_sources --mount=type=secret,id=ca_bundle \
    /install/apt libgomp1

# ---------------------------------------------------------------- dependencies
FROM system AS dependencies-cpu
# where pip finds PyTorch's CPU wheel if its own index has none; the build refuses several GB of CUDA. That wheel alone is
# pinned without a hash, because each index carries a build of its own; its index is asked for nothing else.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    torch="$(sed -nE 's/^(torch==[0-9.]+)$/\1+cpu/p' /requirements/trainer.lock)" \
    && { /install/pip --no-deps "$torch" \
        || { echo "If pip found no torch+cpu: PIP_EXTRA_INDEX_URL=<PyTorch's CPU index> or TUNESHIP_WHEELS=<folder>" >&2; \
             exit 1; }; } \
    && unset PIP_EXTRA_INDEX_URL \
    && /install/pip --require-hashes --no-deps -r /requirements/hashed/trainer.txt \
    && /install/pip --require-hashes --no-deps --target /opt/venv/converter -r /requirements/hashed/converter.txt \
    && /install/pip --require-hashes --no-deps -r /requirements/hashed/embedded.txt

FROM system AS dependencies-cuda
# The lock is complete, and leaves out what Unsloth names and does not need: hence --no-deps. Unsloth's Studio and command
# line (AGPL, 84 MB) are not used and not kept.
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    /install/pip --require-hashes --no-deps -r /requirements/hashed/trainer-cuda.txt \
    && /install/pip --require-hashes --no-deps --target /opt/venv/converter -r /requirements/hashed/converter.txt \
    && /install/pip --require-hashes --no-deps -r /requirements/hashed/embedded.txt \
    && rm -r /opt/venv/lib/python3*/site-packages/studio /opt/venv/lib/python3*/site-packages/unsloth_cli

FROM system AS source
WORKDIR /app
COPY modelstore modelstore
COPY trainer trainer
COPY configs configs
COPY data data
RUN python3 -m compileall -q modelstore trainer

# ---------------------------------------------------------------- images
FROM system AS image
ARG UID=10001
ARG GID=10001
LABEL org.opencontainers.image.title="Tuneship trainer" \
      org.opencontainers.image.description="Fine-tunes a small language model, proves the exported files, publishes the run."
# a new named volume takes the owner of its mount point over, and every image has the same one
RUN install -d -o "$UID" -g "$GID" /app/models
WORKDIR /app
# USER: libraries ask for the name of a uid that has none. /tmp lets nothing be executed, so compiled code goes to the store.
# The place of a secret is none:
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=tuneship \
    XDG_CACHE_HOME=/app/models/cache \
    HF_HOME=/app/models/cache/huggingface \
    HF_TOKEN_PATH=/run/secrets/hf_token \
    MODELSCOPE_CACHE=/app/models/cache/modelscope \
    TRITON_CACHE_DIR=/app/models/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/app/models/cache/torchinductor
USER ${UID}:${GID}
VOLUME /app/models
STOPSIGNAL SIGTERM
# a job has an exit code, not a state of health
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "trainer"]
CMD ["train"]

FROM image AS cuda
# Triton compiles a launcher for each kernel at run time, so this image alone keeps a C compiler
USER 0:0
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=secret,id=apt_sources --mount=type=secret,id=ca_bundle \
    /install/apt gcc libc6-dev
ARG UID=10001
ARG GID=10001
USER ${UID}:${GID}
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --link --from=dependencies-cuda /opt/venv /opt/venv
COPY --link --from=source /app /app

FROM image AS cpu
COPY --link --from=dependencies-cpu /opt/venv /opt/venv
COPY --link --from=source /app /app
