# docker build --target cpu -t zppo-bench .          tiny models and small real ones, on a CPU
# docker build --target gpu -t zppo-bench:gpu .      vLLM and kernels; run with --gpus all
# docker run -v "$PWD/outputs:/work/outputs" zppo-bench sweep quickstart
FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc git libc6-dev make python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/zppo-bench
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable .
WORKDIR /work
ENTRYPOINT ["zppo"]
CMD ["--help"]

FROM cpu AS gpu
RUN pip install --no-cache-dir --editable '/opt/zppo-bench[vllm]'
