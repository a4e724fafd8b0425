# sam4ir in a container: the command `sam4ir`, run by a user without rights.
#
#   docker build -t sam4ir .                                 for CPUs
#   docker build -t sam4ir:cuda --build-arg TORCH=cu126 .    for NVIDIA GPUs: docker run --gpus all
#   docker run --rm -v "$PWD:/data" sam4ir restore --weights net_g_latest.pth --input in --output out
#
# TORCH is the kind of PyTorch's wheels: cpu, or a version of CUDA. Wheels for CUDA bring its libraries, so both kinds
# have the same base. EXTRAS are extras of setup.py, such as demo,hub.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
ARG TORCH_VERSION=2.6.0
ARG TORCHVISION_VERSION=0.21.0
ARG EXTRAS=hub
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/sam4ir
ENV PATH=/opt/sam4ir/bin:$PATH
RUN pip install --index-url "https://download.pytorch.org/whl/${TORCH}" \
    "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}"
WORKDIR /src
COPY requirements.txt ./
RUN pip install -r requirements.txt
COPY setup.py pyproject.toml README.md LICENSE ./
COPY sam4ir sam4ir
COPY options options
COPY datasets/quickstart datasets/quickstart
# hadolint ignore=DL3013
RUN pip install ".[${EXTRAS}]" \
    && find /opt/sam4ir -name __pycache__ -prune -exec rm -r {} +

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="sam4ir" \
    org.opencontainers.image.description="Train, test and deploy networks for image restoration" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 sam4ir \
    && mkdir /data \
    && chown sam4ir:sam4ir /data
COPY --from=build /opt/sam4ir /opt/sam4ir
ENV PATH=/opt/sam4ir/bin:$PATH PYTHONUNBUFFERED=1 SAM4IR_HOME=/data/.sam4ir
USER 1000:1000
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["sam4ir"]
CMD ["--help"]
