#!/bin/sh
# Build both images with docker, podman or buildah, whichever there is; called by `make images`.
#
#   ENGINE        docker | podman | buildah       IMAGE_PREFIX  what stands before fusechat-stages (a registry)
#   TAG           default: the project's version  TARGETS       default: operator stages
#   BASE          another image with Python       TORCH_INDEX   where torch comes from (images/Dockerfile); may be empty
#   WHEELS        a folder of wheels; set, no package index is asked
#
# A second build takes seconds: dependencies are made anew only when images/*.txt changes.
set -eu
cd "$(dirname "$0")/.."

# A client without its daemon or without BuildKit is no engine.
works() {
  case $1 in
    docker) docker buildx version && docker info ;;
    *) "$1" --version ;;
  esac >/dev/null 2>&1
}
if [ -z "${ENGINE:-}" ]; then
  for ENGINE in docker podman buildah none; do
    if works "$ENGINE"; then break; fi
  done
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
prefix=${IMAGE_PREFIX-localhost/}

case $ENGINE in
  buildah) build="buildah build --layers" ;;
  podman) build="podman build --layers" ;;
  docker) build="docker buildx build --load" ;;
  *) echo "error: no docker (with buildx), podman or buildah works on this machine; install one, or name one in ENGINE" >&2; exit 69 ;;
esac

set -- -f images/Dockerfile
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
[ -z "${TORCH_INDEX+set}" ] || set -- "$@" --build-arg "TORCH_INDEX=$TORCH_INDEX"
[ -z "${WHEELS:-}" ] || set -- "$@" --build-context "wheels=$WHEELS" --build-arg PIP_NO_INDEX=1 --build-arg TORCH_INDEX=

for target in ${TARGETS:-operator stages}; do
  $build --target "$target" -t "${prefix}fusechat-$target:${TAG:-$version}" "$@" .
done
for target in ${TARGETS:-operator stages}; do
  "$ENGINE" images "${prefix}fusechat-$target:${TAG:-$version}"
done
