# docker build -t quire .                        CPU; with --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU
#                                                wheels> without the gigabytes of CUDA that the default torch brings
# docker build -t quire --build-arg DEVICE=gpu . CUDA (run with --gpus all)
# docker run -p 8000:8000 -v quire-models:/models -e QUIRE_API_KEY=... quire [MODEL] [flags]

FROM python:3.11-slim AS build
ARG DEVICE=cpu
# pip reads it from the environment; a CPU wheel has the higher local version, so it wins where the index has one.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The CPU kernels are compiled while Quire is built, for every instruction set; the one that fits is chosen at run time.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/quire
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY quire quire
COPY engine engine
COPY kernels kernels
COPY server server
COPY clients clients
COPY benchmarks benchmarks
COPY models models
COPY tests/simulator tests/simulator
RUN if [ "$DEVICE" = gpu ]; then /opt/quire/bin/pip install ".[gpu]"; else /opt/quire/bin/pip install .; fi

FROM python:3.11-slim
ARG DEVICE=cpu
# OpenMP for the CPU kernels; Triton compiles its launchers with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    $(if [ "$DEVICE" = gpu ]; then echo gcc libc6-dev; fi) && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 quire && mkdir /models && chown quire /models
COPY --from=build /opt/quire /opt/quire
USER quire
ENV PATH=/opt/quire/bin:$PATH PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HOME=/models QUIRE_HOST=0.0.0.0 QUIRE_PORT=8000
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"QUIRE_PORT\"]}/health', timeout=4)"]
ENTRYPOINT ["quire", "serve"]
