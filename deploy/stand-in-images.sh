#!/usr/bin/env bash
# Builds stand-ins, under the same names, for the images that Dockerfile, docker-compose.yml and
# deploy/compose.proof.yml start from: for machines with an engine but without an image registry.
#
#     deploy/stand-in-images.sh                 runtime, nats and python, which the proof needs
#     deploy/stand-in-images.sh rust            the build image, 1 GB, to build inside a container
#     deploy/stand-in-images.sh --remove        removes every stand-in, and what was built on one
#
# Everything in them comes from this machine, a Debian 12 or a near relative, so what they show holds
# for the files of this project and not for the images that they stand for; deploy/README.md says more.
# nats-server is NATS_SERVER or what `make tools` brings; busybox has to be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

mark=hookbridge.stand-in
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
tree=$temporary/tree

fail() {
    echo "stand-in-images: $*" >&2
    exit 1
}

is_stand_in() { [ "$(docker image inspect -f "{{index .Config.Labels \"$mark\"}}" "$1")" = yes ]; }

# Copies files to the same place in the image, links followed.
copy() {
    local path
    for path in "$@"; do
        mkdir -p "$tree$(dirname "$path")"
        cp -L "$path" "$tree$path"
    done
}

libraries_of() {
    { ldd "$@" 2>/dev/null || true; } |
        awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*[^:]$/ { print $1 }' | sort -u
}

copy_with_libraries() {
    copy "$@"
    local library
    for library in $(libraries_of "$@"); do copy "$library"; done
}

# A shell, cat and wget, as Alpine has them.
copy_busybox() {
    local busybox
    busybox=$(command -v busybox) || fail "busybox is missing (Debian: busybox-static)"
    copy_with_libraries "$busybox"
    mkdir -p "$tree/bin"
    local applet
    for applet in sh cat wget; do ln -sf "$busybox" "$tree/bin/$applet"; done
}

begin() {
    rm -rf "$tree"
    mkdir -p "$tree/etc/ssl/certs" "$tree/home/nonroot" "$tree/tmp"
    chmod 1777 "$tree/tmp"
    copy /etc/ssl/certs/ca-certificates.crt
    printf '%s\n' root:x:0:0:root:/root:/sbin/nologin \
        nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin > "$tree/etc/passwd"
    printf '%s\n' root:x:0: nonroot:x:65532: > "$tree/etc/group"
    echo 'hosts: files dns' > "$tree/etc/nsswitch.conf"
}

# The first argument is the name, the others are Dockerfile instructions.
finish() {
    local name=$1 instruction changes=()
    shift
    # The real image must never be lost to its stand-in.
    if docker image inspect "$name" > /dev/null 2>&1 && ! is_stand_in "$name"; then
        echo "kept $name, which is not a stand-in"
        return
    fi
    for instruction in "LABEL $mark=yes" "ENV PATH=/usr/local/bin:/usr/bin:/bin" "$@"; do
        changes+=(--change "$instruction")
    done
    tar -C "$tree" --owner=0 --group=0 --numeric-owner -c . |
        docker import "${changes[@]}" - "$name" > /dev/null
    echo "built $name"
}

build_runtime() {
    begin
    # Distroless consists of these packages' files as well.
    dpkg -L libc6 libgcc-s1 libstdc++6 | grep -E '\.so(\.|$)' | grep -v gconv |
        sed 's|^/||' > "$temporary/libraries"
    tar -C / -c --dereference --files-from="$temporary/libraries" | tar -C "$tree" -x
    finish gcr.io/distroless/cc-debian12:nonroot "USER 65532" "WORKDIR /home/nonroot"
}

build_nats() {
    begin
    copy_busybox
    mkdir -p "$tree/usr/local/bin"
    local server=${NATS_SERVER:-.tools/nats-server}
    [ -x "$server" ] || make --silent tools
    cp "$server" "$tree/usr/local/bin/nats-server"
    chmod 755 "$tree/usr/local/bin/nats-server"
    # The official image wraps the command like this.
    printf '#!/bin/sh\nexec "$@"\n' > "$tree/usr/local/bin/docker-entrypoint.sh"
    chmod 755 "$tree/usr/local/bin/docker-entrypoint.sh"
    finish nats:2.15.1-alpine 'ENTRYPOINT ["docker-entrypoint.sh"]' 'EXPOSE 4222 6222 8222'
}

build_python() {
    begin
    copy_busybox
    local python standard_library
    python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
    standard_library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    copy_with_libraries "$python"
    mkdir -p "$tree$standard_library" "$tree/usr/local/bin"
    tar -C "$standard_library" --exclude=site-packages --exclude=test --exclude=__pycache__ \
        --exclude='config-*' --exclude='*.a' -c . | tar -C "$tree$standard_library" -x
    local library
    for library in $(libraries_of "$standard_library"/lib-dynload/*.so); do copy "$library"; done
    ln -s "$python" "$tree/usr/local/bin/python3"
    finish python:3.13-slim-bookworm 'CMD ["python3"]'
}

build_rust() {
    rm -rf "$tree"
    # The official image is Debian's own with these packages and a toolchain, too.
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$tree" > "$temporary/log" ||
        fail "debootstrap, which needs root, did not finish: $(tail -n 3 "$temporary/log")"
    rm -rf "$tree/var/cache/apt" "$tree/var/lib/apt/lists"
    copy /etc/ssl/certs/ca-certificates.crt
    mkdir -p "$tree/usr/local/cargo" "$tree/usr/local/rustup"
    local toolchain
    toolchain=$(rustc --print sysroot)
    tar -C "$toolchain" --exclude=share/doc --exclude=share/man -c bin lib | tar -C "$tree/usr/local/rustup" -x
    finish rust:1.95-slim-bookworm 'ENV CARGO_HOME=/usr/local/cargo' \
        'ENV PATH=/usr/local/rustup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

if [ "${1:-}" = --remove ]; then
    docker image ls --filter "label=$mark=yes" --format '{{.Repository}}:{{.Tag}}' |
        { grep -v '^<none>' || true; } | xargs -r docker image rm
    exit
fi

[ $# -gt 0 ] || set -- runtime nats python
for image in "$@"; do
    case $image in
        runtime | nats | python | rust) "build_$image" ;;
        *) fail "unknown image \`$image\`; there are runtime, nats, python and rust" ;;
    esac
done
