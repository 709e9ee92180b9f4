# One small image for both roles; the command says which one a container plays.
#
# It needs neither BuildKit nor a Dockerfile frontend to download, so that Debian's docker.io and
# docker-compose build it as well as a current engine does. That is why there is no `RUN --mount`:
# the dependencies have a layer of their own instead.

ARG RUST_IMAGE=rust:1.95-slim-bookworm

# glibc, libgcc and CA certificates, a user 65532 and nothing else: no shell, no package manager.
# It has the same Debian under it as the build image, so the binary finds the glibc it was linked to.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUNTIME_IMAGE} AS base
LABEL org.opencontainers.image.title="Hookbridge" \
      org.opencontainers.image.description="The bridge between HTTP webhooks and AI agents on NATS" \
      org.opencontainers.image.licenses="Apache-2.0"
# The default configuration, config/hookbridge.toml, is looked up from here; mount it there.
WORKDIR /etc/hookbridge
# The number instead of the name lets Kubernetes see that the user is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/hookbridge"]
CMD ["serve"]
# The image has no curl, so the binary asks the admin listener of the running process itself.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/hookbridge", "ready"]

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# Dependencies change rarely and take most of the time, so they are built before the sources come in.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && printf '//! Only the dependencies.\nfn main() {}\n' > src/main.rs \
    && echo '//! Only the dependencies.' > src/lib.rs \
    && cargo build --profile dist --locked --bin hookbridge \
    && rm -r src
COPY . .
# A checkout can be older than the layer above, and cargo would then keep the empty program.
RUN touch src/main.rs src/lib.rs \
    && cargo build --profile dist --locked --bin hookbridge \
    && cp target/dist/hookbridge /hookbridge

FROM base AS runtime
COPY --from=build /hookbridge /usr/local/bin/hookbridge
