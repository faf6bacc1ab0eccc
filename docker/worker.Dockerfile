# A worker with CUDA: the pip wheels of torch bring the CUDA libraries, the host brings the driver.
#   docker build -f docker/worker.Dockerfile -t hdee-worker .
FROM python:3.11-slim
WORKDIR /opt/hdee
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protocol protocol
COPY shared shared
COPY worker worker
COPY coordinator coordinator
RUN pip install --no-cache-dir -c constraints.txt .
RUN useradd --create-home hdee && mkdir /worker-folder && chown hdee /worker-folder
USER hdee
# The folder holds the worker's key: keep it in a volume, so that its identity outlives the container.
VOLUME /worker-folder
CMD ["hdee-worker", "join", "http://coordinator:8700", "--yes", "--folder", "/worker-folder", "--insecure"]
