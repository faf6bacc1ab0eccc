# The coordinator: CPU only. Build from the repository's root:
#   docker build -f docker/coordinator.Dockerfile -t hdee-coordinator .
FROM python:3.11-slim
WORKDIR /opt/hdee
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protocol protocol
COPY shared shared
COPY worker worker
COPY coordinator coordinator
RUN pip install --no-cache-dir -c constraints.txt .
RUN useradd --create-home hdee && mkdir /run-folder && chown hdee /run-folder
USER hdee
VOLUME /run-folder
EXPOSE 8700 8701 8702
# `docker run ... hdee-coordinator init /run-folder` writes the run file and its keys first.
CMD ["hdee-coordinator", "serve", "/run-folder/run.toml", "--insecure"]
