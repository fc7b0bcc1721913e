# Serves a run and its base model with vLLM, on vLLM's own image. Needs an NVIDIA GPU.
#   docker build -f docker/server-vllm.Dockerfile -t tuneship/server-vllm:cuda .
ARG VLLM_IMAGE=vllm/vllm-openai:v0.26.0@sha256:ffb2d59b1c059a5bd8d781320c9f5189de8293693b7d95da54befddaa54abf52

# --build-context wheels=FOLDER replaces it
FROM scratch AS wheels

FROM ${VLLM_IMAGE} AS dependencies
# an environment of its own: what the gateway needs never changes a version that vLLM was tested with
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    grep -v '^xllamacpp==' /requirements/hashed/server.txt > /tmp/gateway.txt \
    && /install/pip --require-hashes -r /tmp/gateway.txt

FROM ${VLLM_IMAGE} AS source
WORKDIR /app
COPY modelstore modelstore
COPY server server
RUN python3 -m compileall -q modelstore server

FROM ${VLLM_IMAGE}
ARG UID=10001
ARG GID=10001
LABEL org.opencontainers.image.title="Tuneship server (vLLM)" \
      org.opencontainers.image.description="Serves a fine-tuned model and its base on one OpenAI-compatible endpoint."
# ssh-keygen, which checks the signatures of runs, refuses a user without a name
RUN install -d -o "$UID" -g "$GID" /app/models /app/cache \
    && echo "tuneship:x:$UID:$GID::/tmp:/usr/sbin/nologin" >> /etc/passwd
WORKDIR /app
# USER: libraries ask for the name of a uid that has none. /tmp lets nothing be executed, so compiled code goes to the cache.
ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=tuneship \
    XDG_CACHE_HOME=/app/cache \
    FLASHINFER_WORKSPACE_BASE=/app/cache \
    HF_HUB_OFFLINE=1 \
    VLLM_CACHE_ROOT=/app/cache/vllm \
    TRITON_CACHE_DIR=/app/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/app/cache/torchinductor \
    VLLM_NO_USAGE_STATS=1 \
    TUNESHIP_VLLM_PYTHON=/opt/vllm-python
COPY --link --from=dependencies /opt/venv /opt/venv
COPY --link --from=source /app /app
COPY --link --chmod=755 docker/install/vllm-python /opt/vllm-python
USER ${UID}:${GID}
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=8s --start-period=20m --start-interval=2s --retries=3 \
    CMD ["/opt/venv/bin/python3", "-m", "server", "wait", "--timeout-s", "0"]
ENTRYPOINT ["/opt/venv/bin/python3", "-m", "server"]
CMD ["serve", "--engine", "vllm", "--host", "0.0.0.0"]
