# The demo in a container; podman takes the same words:
#   docker build -t unlearn . && docker run unlearn
#   docker run -v "$PWD/runs:/unlearn/runs" unlearn        leaves the runs and the figure in ./runs
# Never built by us, for want of a container engine: its commands were run one after another in a folder that had what
# .dockerignore lets in, with Python 3.11.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /unlearn
COPY . .
RUN make setup
CMD ["make", "demo"]
