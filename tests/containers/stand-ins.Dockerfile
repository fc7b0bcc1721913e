# The real programs from Debian's packages, where their own images cannot be pulled.
ARG BASE
FROM ${BASE} AS packages
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus haproxy && rm -rf /var/lib/apt/lists/*
FROM packages AS prometheus
RUN install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
FROM packages AS haproxy
ENTRYPOINT ["/usr/sbin/haproxy"]
