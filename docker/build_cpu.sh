#!/usr/bin/env bash
# Builds docker/cpu.Dockerfile without a Docker daemon or registry, and runs the doctor in it: `make docker-cpu`.
#
#   apt-get install -y --no-install-recommends buildah podman debootstrap
#   docker/build_cpu.sh                                            as root
#   BUILD_FLAGS="--volume /etc/pip.conf:/etc/pip.conf:ro" docker/build_cpu.sh
#
# Behind a proxy with certificates of its own: --volume /etc/ssl/certs/ca-certificates.crt:/usr/local/share/ca-certificates/site.crt:ro
#
# BUILD_FLAGS  more flags for `buildah bud`, separated by blanks, such as a pip configuration of the site
# ROOTFS       the base's root, made by debootstrap if it is not there; default: build/docker/bookworm
set -euo pipefail
cd "$(dirname "$0")/.."

rootfs=${ROOTFS:-build/docker/bookworm}
base=localhost/debian-bookworm image=localhost/electra_dist:cpu
# chroot: no namespaces, which sandboxes and many build nodes forbid; vfs: no overlay file system either.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
read -r -a flags <<<"${BUILD_FLAGS:-}"

if [[ ! -x $rootfs/usr/bin/apt-get ]]; then
    mkdir -p "$rootfs"
    debootstrap --variant=minbase bookworm "$rootfs"
fi
tar -C "$rootfs" -c . | podman import - "$base"
buildah bud --network host --pull-never --layers=false "${flags[@]}" \
    --build-arg "BASE=$base" -f docker/cpu.Dockerfile -t "$image" .

container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" >/dev/null' EXIT
buildah run --network host "$container" -- electra-dist doctor
