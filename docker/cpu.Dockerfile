# electra_dist without a GPU: login nodes, corpus builds, tests, small runs.
#
#   docker build -f docker/cpu.Dockerfile -t electra_dist:cpu .
#   make docker-cpu              without Docker: debootstrap, buildah and a doctor's visit
#
# BASE needs apt and Python >= 3.11 in its packages: Debian 12 or 13, Ubuntu 24.04.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}

# Packages of a Debian release only get fixes, and old versions leave its archive: a pin would stop building within weeks.
# g++ builds deepspeed's source package; MPI, ssh and pdsh are for launchers.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ iproute2 libopenmpi-dev openmpi-bin openssh-client pdsh procps \
        python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/electra_dist
ENV PATH=/opt/electra_dist/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv "$VIRTUAL_ENV"

# What changes rarely first, so that a change of the code rebuilds the last layer only. See docker/README.md for the pins.
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY requirements/build.txt requirements/run.txt requirements/
RUN pip install -q --require-hashes -r requirements/build.txt \
    && { pip install -q --no-deps "torch==$TORCH_VERSION+cpu" 2>/dev/null \
        || pip install -q --no-deps "torch==$TORCH_VERSION" --index-url "$TORCH_INDEX"; } \
    && pip install -q --no-deps --no-build-isolation --require-hashes -r requirements/run.txt

COPY pyproject.toml README.md LICENSE ./
COPY electra_dist electra_dist
RUN pip install -q --no-deps --no-build-isolation . && pip check
WORKDIR /work
CMD ["electra-dist", "--help"]
