# For those with Docker: docker build -t kube-proxy-rs:0.1.0 .
# The content is that of `make image`, which needs no Docker; this only runs it in a container.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils make python3
WORKDIR /src
COPY . .
RUN make image

FROM scratch
COPY --from=build /src/target/image/rootfs /
ENV PATH=/usr/local/bin:/usr/sbin
ENTRYPOINT ["/usr/local/bin/kube-proxy-rs"]
