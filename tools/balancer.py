#!/usr/bin/env python3
"""Writes HAProxy's configuration for one endpoint in front of one or more Tuneship servers.

usage: tools/balancer.py [--tls] [--port 8443] HOST[:PORT] …

With several hosts the least busy one answers. A server that does not generate, as its /ready says, gets no request;
one that ends keeps what it is answering. The proxy of compose.yaml reads the file that TUNESHIP_PROXY_CONFIG names.
Standard library only.
"""

from __future__ import annotations

import argparse
import re
import sys

HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\]")
TEMPLATE = """\
# Written by tools/balancer.py {arguments}
global
    log stdout format raw local0 notice
    maxconn 8192

# names are asked again, so a server may come back with another address
resolvers system
    parse-resolv-conf
    hold valid 5s

defaults
    mode http
    log global
    option dontlognull
    option forwardfor
    # long answers come in pieces; a first piece may take as long as a long prompt
    timeout connect 5s
    # a busy server may take its time to say that it generates; without this line a check has as long as their interval
    timeout check 5s
    timeout client 10m
    timeout server 10m
    timeout http-request 30s
    # a request that no server has begun to answer goes to another one. For that it is read as a whole first: one whose
    # body comes after its headers would not be repeated after a 503, and neither is one longer than a buffer (16 kB)
    option http-buffer-request
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 503

frontend endpoint
    bind :{port}{tls}
    # the servers' metrics are for the operator
    http-request deny if {{ path /metrics }}
    default_backend servers

backend servers
    balance leastconn
    option httpchk GET /ready
    http-check expect status 200
    default-server check inter 1s fall 2 rise 1 resolvers system init-addr last,libc,none
{servers}
"""


def configuration(servers: list[str], port: int, tls: bool) -> str:
    """Raises ValueError for what is no HOST[:PORT]."""
    lines = []
    for number, server in enumerate(servers, 1):
        host, colon, own_port = server.rpartition(":") if re.search(r":\d+$", server) else (server, "", "")
        if not HOST.fullmatch(host):
            raise ValueError(f"{server!r} is no HOST or HOST:PORT")
        lines.append(f"    server server{number} {host}:{own_port if colon else 8000}")
    arguments = " ".join([*(["--tls"] if tls else []), f"--port {port}", *servers])
    secured = " ssl crt /run/secrets/tls_pem alpn h2,http/1.1 ssl-min-ver TLSv1.2" if tls else ""
    return TEMPLATE.format(arguments=arguments, port=port, tls=secured, servers="\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="HOST[:PORT]")
    parser.add_argument("--port", type=int, default=8443, help="where clients connect (default: 8443)")
    parser.add_argument("--tls", action="store_true", help="with the certificate in /run/secrets/tls_pem")
    arguments = parser.parse_args()
    try:
        sys.stdout.write(configuration(arguments.servers, arguments.port, arguments.tls))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
