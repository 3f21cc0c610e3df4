# For GPUs. CUDA comes with pip; the machine brings its driver (525 or newer). Not built:
# its pip steps were resolved in clean environments (tests/install_test.py holds them to
# pyproject.toml), Docker was not at hand.
#
#   docker build -f launch/docker/cuda.Dockerfile -t fluid-cuda .
#   docker run --gpus=all --ipc=host fluid-cuda python -m fluid.train --config=...
FROM python:3.12-slim

# Runs record the commit of their code.
RUN apt-get update && apt-get install -y --no-install-recommends git \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /fluid
# Packages first: they stay as they are while the code changes.
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt 'jax[cuda12]>=0.10,<0.13'
COPY . .
RUN pip install --no-cache-dir -e .[cuda,data,eval,gcs]
