# One image for both roles: the webhook is `gunicorn`, the sidecar of an admitted pod is `python -m sidecar`.
ARG BASE_IMAGE=docker.io/library/python:3.11.16-slim-bookworm

# The standard library, compiled: official images bring none of it so. Where the root is read-only every probe of a
# sidecar would compile anew what it imports, and take three times as long.
FROM ${BASE_IMAGE} AS library
RUN folder="$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" && \
  python3 -m compileall -q --invalidation-mode unchecked-hash "${folder}" \
    -x '/(dist-packages|site-packages|ensurepip|idlelib|lib2to3|pydoc_data|test|tests|tkinter|turtledemo)/' && \
  mkdir /compiled && find "${folder}" -name __pycache__ -prune -exec cp --recursive --parents -t /compiled {} +

FROM ${BASE_IMAGE} AS build
# pip stands beside what is shipped, not in it.
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/venv
WORKDIR /src
# What the project needs, before the project: its code changes more often.
COPY setup.cfg pyproject.toml ./
RUN /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile .
COPY app app
COPY sidecar sidecar
RUN /opt/tools/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-deps --force-reinstall .
COPY gunicorn.conf.py /srv/
# No source is looked at again to see whether it has changed: here none does.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib /srv

# Nothing runs in this stage, so nothing else comes in by it.
FROM ${BASE_IMAGE}
COPY --from=library /compiled /
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv /srv
ENV PATH="/opt/venv/bin:${PATH}"
# Where gunicorn finds its configuration.
WORKDIR /srv
# A number, so that the kubelet can tell that it is not root.
USER 65532:65532
EXPOSE 9443 8080
STOPSIGNAL SIGTERM
CMD ["gunicorn"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="at-least-semaphore-pod-hook" \
  org.opencontainers.image.description="A Kubernetes admission webhook that lets only so many pods run at once" \
  org.opencontainers.image.source="https://github.com/kaidotio/at-least-semaphore-pod-hook" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"
