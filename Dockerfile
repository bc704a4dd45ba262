# A server with the weights of a model in it. The same text stands wherever a document names a Dockerfile:
#
#   docker build --file docker/presets/inference/llama-2/Dockerfile \
#     --build-arg WEIGHTS_PATH=weights/llama-2-7b --build-arg MODEL_TYPE=llama2-completion --build-arg VERSION=0.0.1 \
#     -t llama-2-7b:0.0.1 .
#
# Docker sees nothing outside the folder it builds in: the weights must lie in it, and WEIGHTS_PATH is their place there.
# `--target server` leaves the weights out: an image for the controller, or for weights that are mounted.

# What builds it needs Rust, a C compiler and certificates; what it runs on needs glibc, as old as the builder's or newer.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY crates crates
COPY models models
COPY charts charts
COPY fuzz fuzz
COPY tests/cluster tests/cluster
RUN cargo build --release --locked --package kaito --bin kaito \
 && mkdir -p /image/usr/local/bin /image/etc/ssl/certs /image/home/kaito \
 && cp "${CARGO_TARGET_DIR:-target}/release/kaito" /image/usr/local/bin/ \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && printf 'root:x:0:0:root:/root:/sbin/nologin\nkaito:x:65532:65532:kaito:/home/kaito:/sbin/nologin\n' >/image/etc/passwd \
 && printf 'root:x:0:\nkaito:x:65532:\n' >/image/etc/group \
 && chown 65532:65532 /image/home/kaito

FROM ${BASE_IMAGE} AS server
COPY --from=build /image /
ENV KAITO_HOST=0.0.0.0
USER 65532:65532
EXPOSE 5000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/kaito"]
CMD ["serve"]
ARG VERSION=latest
LABEL io.kaito.server="${VERSION}" \
      org.opencontainers.image.title="kaito" \
      org.opencontainers.image.description="Serves open language models over the HTTP API of the Kaito project" \
      org.opencontainers.image.version="${VERSION}"

FROM server
# The folder of the weights: by this name, by the older one, or as llama/LLAMA_VERSION.
ARG WEIGHTS_PATH=
ARG LLAMA_WEIGHTS=
ARG LLAMA_VERSION=give-WEIGHTS_PATH
# What the model is for: llama2-completion, llama2-chat. Older commands name a folder that ends in -chat or not. The
# server answers both on their routes, so they are no more than labels.
ARG MODEL_TYPE=
ARG SRC_DIR=
COPY ${WEIGHTS_PATH:-${LLAMA_WEIGHTS:-llama/${LLAMA_VERSION}}} /weights/
ENV KAITO_WEIGHTS=/weights
LABEL io.kaito.weights="/weights" \
      io.kaito.model-type="${MODEL_TYPE:-${SRC_DIR}}"
