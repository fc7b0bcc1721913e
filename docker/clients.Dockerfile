# Evaluates, measures and talks to an OpenAI-compatible endpoint.
#   docker build -f docker/clients.Dockerfile -t tuneship/clients:cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# --build-context wheels=FOLDER replaces it
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS dependencies
RUN --mount=type=bind,source=docker/install,target=/install \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip_conf --mount=type=secret,id=ca_bundle \
    COMPILE=no /install/pip --require-hashes -r /requirements/hashed/clients.txt \
    && /install/slim
# what the commands import is compiled, and nothing else
RUN /opt/venv/bin/python3 -c "import click, jinja2, matplotlib.backends.backend_svg, matplotlib.figure, openai, \
rich.progress, rich.table, scipy.stats, openai.resources.chat, openai.resources.models"

FROM ${PYTHON_IMAGE} AS source
WORKDIR /app
COPY modelstore modelstore
COPY clients clients
COPY data data
RUN python3 -m compileall -q modelstore clients

FROM ${PYTHON_IMAGE} AS cpu
ARG UID=10001
ARG GID=10001
LABEL org.opencontainers.image.title="Tuneship clients" \
      org.opencontainers.image.description="Evaluates base against tuned, measures latency, writes the report, chats."
RUN install -d -o "$UID" -g "$GID" /app/models
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
COPY --link --from=dependencies /opt/venv /opt/venv
COPY --link --from=source /app /app
USER ${UID}:${GID}
VOLUME /app/models
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "clients"]
CMD ["eval"]
