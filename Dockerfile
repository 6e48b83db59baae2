# repalign with the libraries of models, for the CPU. Build: docker build -t repalign .   Run: docker run -v "$PWD:/work" repalign pair x.npy y.npy
FROM python:3.11-slim
WORKDIR /repalign
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip install --no-cache-dir '.[models]' && rm -rf /repalign
WORKDIR /work
ENTRYPOINT ["repalign"]
CMD ["--help"]
