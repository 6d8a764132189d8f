# Images of tensormeter.
#
#   docker build --target server  --tag tensormeter-server .      the experiment server; no torch in it
#   docker build --target trainer --tag tensormeter-trainer .     the demo's training script

FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/tensormeter/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home --home-dir /home/tensormeter tensormeter \
 && install --directory --owner 10001 --group 10001 /data

FROM base AS build
WORKDIR /src
RUN python -m venv /opt/tensormeter
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY build_hooks build_hooks
COPY ui ui
COPY src src
COPY exporters exporters

FROM build AS build-server
RUN /opt/tensormeter/bin/pip install --no-cache-dir '.[clickhouse,server]'

FROM build AS build-trainer
# Log calls are compiled C where there is a compiler. It stays in this stage.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
# torch alone from its own index, and everything else from PyPI: with two indexes at once, either could stand in for the other.
RUN /opt/tensormeter/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch \
 && /opt/tensormeter/bin/pip install --no-cache-dir '.[torch]' scikit-learn

FROM base AS trainer
COPY --from=build-trainer /opt/tensormeter /opt/tensormeter
COPY examples /app/examples
WORKDIR /app
USER 10001
ENTRYPOINT ["python"]
CMD ["examples/digits.py"]

FROM base AS server
COPY --from=build-server /opt/tensormeter /opt/tensormeter
ENV TENSORMETER_DIR=/data/runs
USER 10001
VOLUME /data
EXPOSE 4320
# It listens for other machines, so it wants a token: TENSORMETER_TOKEN, or --token-file with a mounted secret.
ENTRYPOINT ["tensormeter"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data"]
