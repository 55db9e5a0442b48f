# The API, and with it everything else that docker-compose.yml runs of ours. The final
# stage has no compiler and no package of a build; nothing in it is written at run time.
#
#   docker build -t vopros .                                   with the demonstration model
#   docker build -t vopros --build-arg WITH_LOCAL_MODEL=0 .    without: 220 MB less

FROM docker.io/library/python:3.11-slim-bookworm AS build
WORKDIR /app
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements.lock ./
# The lock is complete: resolving again could only reach for something newer than it.
RUN python3 -m venv /opt/vopros \
    && /opt/vopros/bin/pip install --require-hashes --no-deps --only-binary :all: \
        -r requirements.lock \
    && /opt/vopros/bin/pip check
ARG WITH_LOCAL_MODEL=1
COPY requirements-local.lock ./
RUN if [ "$WITH_LOCAL_MODEL" = 1 ]; then \
        /opt/vopros/bin/pip install --require-hashes --no-deps --only-binary :all: \
            -r requirements-local.lock; \
    fi
COPY . .
# Run from its root, so installed in place. The modes of a clone made under a strict umask
# would keep the service's own user out. Compiled now: later nothing may be written.
RUN /opt/vopros/bin/pip install --no-deps --no-build-isolation --no-index -e . \
    && chmod -R a+rX /app \
    && /opt/vopros/bin/python -m compileall -q core migrations modules providers


FROM docker.io/library/python:3.11-slim-bookworm
ARG WITH_LOCAL_MODEL=1
# llama.cpp computes with it. Unpinned: Debian stable changes a package only to repair it.
# hadolint ignore=DL3008
RUN if [ "$WITH_LOCAL_MODEL" = 1 ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends libgomp1 \
        && rm -rf /var/lib/apt/lists/*; \
    fi
# A named volume takes over the owner and the mode of the folder that it is mounted on.
RUN groupadd --gid 10001 vopros \
    && useradd --uid 10001 --gid vopros --no-log-init --no-create-home \
        --home-dir /nonexistent --shell /usr/sbin/nologin vopros \
    && install -d -o vopros -g vopros -m 0700 /var/lib/vopros/secrets
COPY --from=build /opt/vopros /opt/vopros
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/vopros/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VOPROS_SERVER__HOST=0.0.0.0 \
    VOPROS_SERVER__PORT=8000
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, because urllib would use a proxy that the environment names. The Host header
# is the first allowed name; if only a configuration file knows it, the server responds with
# 400, which counts as healthy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=90s CMD ["python", "-c", "\
import os, re, sys; \
from http.client import HTTPConnection; \
env = os.environ; \
names = re.findall('[a-zA-Z0-9_.-]+', env.get('VOPROS_SERVER__ALLOWED_HOSTS', '')); \
host, port = env['VOPROS_SERVER__HOST'], int(env['VOPROS_SERVER__PORT']); \
server = HTTPConnection(host, port, timeout=4); \
server.request('GET', '/health/ready', headers={'Host': (names or ['localhost'])[0]}); \
answer = server.getresponse(); \
sys.exit(answer.read().decode() if answer.status >= 500 else 0)"]
CMD ["vopros", "serve"]
