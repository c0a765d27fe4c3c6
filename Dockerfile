# The command `paligemma` in an image:
#
#   docker build -t paligemma .
#   docker run --rm -it -v "$PWD:/work" --user "$(id -u):$(id -g)" \
#     paligemma train --config configs/transfers/digits.py --workdir runs/digits
#
# With --build-arg EXTRAS=cuda it is for NVIDIA GPUs (docker run --gpus all), with
# EXTRAS=tpu,gcs for TPUs; the extras are those of setup.py. To serve, on CPUs, or
# with EXTRAS=serve,cuda and --gpus all on GPUs:
#
#   docker build -t paligemma-serve --build-arg EXTRAS=serve .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/work:ro" paligemma-serve \
#     serve --ckpt runs/digits --tokenizer tokenizer.model --host 0.0.0.0 \
#     --token_file token
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=
WORKDIR /source
COPY LICENSE README.md constraints.txt pyproject.toml setup.py ./
COPY configs configs
COPY paligemma paligemma
COPY scripts scripts
COPY trainers trainers
RUN python -m venv /opt/paligemma \
  && /opt/paligemma/bin/pip install --no-cache-dir -c constraints.txt \
    ".${EXTRAS:+[$EXTRAS]}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/paligemma /opt/paligemma
ENV PATH=/opt/paligemma/bin:$PATH
RUN useradd --create-home --uid 1000 paligemma
USER 1000
WORKDIR /work
ENTRYPOINT ["paligemma"]
CMD ["--help"]
