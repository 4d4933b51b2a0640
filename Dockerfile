# docker build -t clapboard . && docker run --rm -v "$PWD:/data" clapboard build-dataset folder --input /data/sounds --out /data/out
FROM python:3.11-slim-bookworm

# PyTorch's CPU build; for NVIDIA GPUs: --build-arg TORCH_BACKEND=cu130
ARG TORCH_BACKEND=cpu
WORKDIR /opt/clapboard
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir uv==0.13.9 \
    && useradd --create-home --uid 1000 clapboard
ENV PATH=/opt/clapboard/.venv/bin:$PATH

COPY pyproject.toml constraints.txt README.md LICENSE cli.py ./
COPY pipelines pipelines
COPY clap clap
COPY datacards datacards
RUN uv pip install --no-cache --torch-backend="$TORCH_BACKEND" torch==2.13.0 \
    && uv pip install --no-cache --constraints constraints.txt .

USER 1000
WORKDIR /data
ENTRYPOINT ["clapboard"]
CMD ["--help"]
