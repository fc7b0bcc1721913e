# Fine-tunes, exports, verifies and publishes. Targets: cpu (default), cuda.
#   docker build -f docker/trainer.Dockerfile --target cpu -t tuneship/trainer:cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu22.04@sha256:bb3de902bc1b522231cffea98a4d25a16ddb9fc8685a958b48d83036f46fd0c2

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
    && /install/pip --require-hashes --no-deps -r /requirements/hashed/embedded.txt \
    && rm -r /opt/venv/lib/python3*/site-packages/studio /opt/venv/lib/python3*/site-packages/unsloth_cli
# llama.cpp runs with the CUDA libraries that torch brings, where it looks for its own
RUN mkdir /opt/llamacpp && for library in libcudart.so.13 libcublas.so.13 libcublasLt.so.13; do \
        found="$(ls /opt/venv/lib/python3*/site-packages/nvidia/cu13/lib/"$library")" \
        && ln -s "$found" /opt/llamacpp/ || exit 1; done

FROM system AS source
WORKDIR /app
COPY modelstore modelstore
COPY trainer trainer
COPY configs configs
COPY data data
RUN python3 -m compileall -q modelstore trainer

# ---------------------------------------------------------------- llama.cpp for CUDA
# Its source comes with the package llama-cpp-python (MIT), so a package mirror is all that this build needs. This part is
# the same text in the Dockerfiles of trainer and server: the builder makes it once, and both images have one llama.cpp.
FROM ${CUDA_IMAGE} AS llamacpp
# the cards of the last six years; one entry, as in 90-real, builds several times faster
ARG CUDA_ARCHITECTURES=75-virtual;80-real;86-real;89-real;90-real
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=secret,id=apt_sources --mount=type=secret,id=ca_bundle \
    /install/apt cmake ninja-build python3-pip
WORKDIR /src
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi; \
    python3 -m pip download --no-deps --no-binary llama-cpp-python --find-links /wheels \
        --require-hashes -r /requirements/hashed/llamacpp-source.txt \
    && tar xzf llama_cpp_python-*.tar.gz --strip-components=1
RUN cmake -S vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DGGML_CUDA=ON -DGGML_NATIVE=OFF -DGGML_CUDA_NCCL=OFF -DCMAKE_CUDA_ARCHITECTURES="$CUDA_ARCHITECTURES" \
        -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH=/opt/llamacpp \
        -DCMAKE_SHARED_LINKER_FLAGS="-Wl,--disable-new-dtags -L/usr/local/cuda/lib64/stubs" \
        -DCMAKE_EXE_LINKER_FLAGS="-Wl,--disable-new-dtags,--allow-shlib-undefined,-rpath-link,/src/build/bin" \
    && cmake --build build --target llama-server llama-quantize llama-imatrix \
    && mkdir -p /opt/llamacpp /opt/serving \
    && cp -P build/bin/llama-server build/bin/lib*.so* /opt/serving/ \
    && cp -P build/bin/llama-quantize build/bin/llama-imatrix /opt/llamacpp/ \
    && cp -P /opt/serving/* /opt/llamacpp/ \
    && cp -r vendor/llama.cpp/conversion vendor/llama.cpp/gguf-py vendor/llama.cpp/convert_hf_to_gguf.py \
        vendor/llama.cpp/LICENSE /opt/llamacpp/ \
    && cp -L /usr/local/cuda/lib64/libcudart.so.13 /usr/local/cuda/lib64/libcublas.so.13 \
        /usr/local/cuda/lib64/libcublasLt.so.13 /opt/serving/

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
ENV TUNESHIP_LLAMACPP=/opt/llamacpp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --link --from=dependencies-cuda /opt/venv /opt/venv
COPY --link --from=dependencies-cuda /opt/llamacpp /opt/llamacpp
COPY --link --from=llamacpp /opt/llamacpp /opt/llamacpp
COPY --link --from=source /app /app

FROM image AS cpu
COPY --link --from=dependencies-cpu /opt/venv /opt/venv
COPY --link --from=source /app /app
