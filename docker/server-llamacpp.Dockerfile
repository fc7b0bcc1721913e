# Serves a run and its base model with llama.cpp. Targets: cpu (default), cuda.
#   docker build -f docker/server-llamacpp.Dockerfile --target cpu -t tuneship/server-llamacpp:cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu22.04@sha256:bb3de902bc1b522231cffea98a4d25a16ddb9fc8685a958b48d83036f46fd0c2

# --build-context wheels=FOLDER replaces it
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS system
# the wheel of llama.cpp links to libgomp; ssh-keygen checks the signatures of runs
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=secret,id=apt_sources --mount=type=secret,id=ca_bundle \
    /install/apt libgomp1 openssh-client
# Python's slim images have no bytecode of the standard library, and nothing is written at run time: every check of health
# would compile what it imports
RUN python3 -m compileall -qq -x '/(test|idlelib|lib2to3|site-packages|dist-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

FROM system AS dependencies
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    /install/pip --require-hashes -r /requirements/hashed/server.txt

FROM system AS source
WORKDIR /app
COPY modelstore modelstore
COPY server server
RUN python3 -m compileall -q modelstore server

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
LABEL org.opencontainers.image.title="Tuneship server (llama.cpp)" \
      org.opencontainers.image.description="Serves a fine-tuned model and its base on one OpenAI-compatible endpoint."
# ssh-keygen refuses a user without a name
RUN install -d -o "$UID" -g "$GID" /app/models \
    && echo "tuneship:x:$UID:$GID::/tmp:/usr/sbin/nologin" >> /etc/passwd
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
COPY --link --from=dependencies /opt/venv /opt/venv
COPY --link --from=source /app /app
USER ${UID}:${GID}
EXPOSE 8000
STOPSIGNAL SIGTERM
# healthy is: both models generated a token a moment ago; an open port is not enough
HEALTHCHECK --interval=10s --timeout=8s --start-period=10m --start-interval=1s --retries=3 \
    CMD ["python3", "-m", "server", "wait", "--timeout-s", "0"]
ENTRYPOINT ["python3", "-m", "server"]
CMD ["serve", "--engine", "llamacpp", "--host", "0.0.0.0"]

FROM image AS cuda
COPY --link --from=llamacpp /opt/serving /opt/llamacpp
ENV TUNESHIP_LLAMA_SERVER=/opt/llamacpp/llama-server \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["serve", "--engine", "llamacpp", "--host", "0.0.0.0", "--gpu-layers", "999"]

FROM image AS cpu
