# For TPU VMs and GKE. Not built: its pip steps were resolved in clean environments
# (tests/install_test.py holds them to pyproject.toml), Docker was not at hand.
#
#   docker build -f launch/docker/tpu.Dockerfile -t fluid-tpu .
#   docker run --privileged --net=host fluid-tpu python -m fluid.train --config=...
FROM python:3.12-slim

# Runs record the commit of their code.
RUN apt-get update && apt-get install -y --no-install-recommends git \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /fluid
# Packages first: they stay as they are while the code changes.
COPY requirements.txt requirements-tpu.txt ./
RUN pip install --no-cache-dir -r requirements-tpu.txt
COPY . .
RUN pip install --no-cache-dir -e .[tpu,data,eval,gcs]
