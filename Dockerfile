# vologan_fast for NVIDIA GPUs. The driver of the machine must allow CUDA 13, and Docker needs the NVIDIA container toolkit.
#
#     docker build -t vologan .
#     docker run --gpus all --shm-size=1g -v /data:/data -v /runs:/runs vologan \
#         --data /data/people --preset vologan-512 --run-dir /runs/people --resume
#
# For several GPUs, replace the entry point:
#
#     docker run --gpus all --shm-size=1g --entrypoint torchrun … vologan \
#         --standalone --nproc-per-node=gpu --max-restarts=3 -m vologan_fast.train …

# Stage 1: the environment in /opt/vologan, with the packages of constraints.txt and our wheels. The CUDA compiler of this
# image also builds the depth decoder for GPUs.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libjpeg-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/vologan
ENV PATH=/opt/vologan/bin:$PATH
WORKDIR /src
COPY constraints.txt .
# These change seldom, and stay in Docker's cache. DALI comes before the build, which compiles operators for it.
RUN pip install --no-cache-dir --constraint constraints.txt \
        torch triton nvidia-dali-cuda130 nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-runtime \
        build scikit-build-core pybind11 cmake ninja
COPY . .
RUN python -m build --wheel --no-isolation --outdir dist kernels \
    && python -m build --wheel --no-isolation --outdir dist . \
    && pip install --no-cache-dir --constraint constraints.txt dist/vologan_kernels-*.whl \
    && pip install --no-cache-dir --constraint constraints.txt "$(echo dist/vologan_fast-*.whl)[dali,exr,s3,gcs,hf,http]"

# Stage 2: what runs. CUDA's libraries come with torch. Triton compiles with gcc and Python's headers.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libjpeg-turbo8 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 vologan
COPY --from=build /opt/vologan /opt/vologan
ENV PATH=/opt/vologan/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/vologan
# The folders of the data and the runs must be open to user 10001; or start with --user "$(id -u)" and -e HOME=/tmp.
ENTRYPOINT ["python", "-m", "vologan_fast.train"]
CMD ["--help"]
