# An image with all commands. Build: docker build -t onelive-jax .     GPU: docker build --build-arg ACCELERATOR=gpu …
FROM python:3.12-slim
ARG ACCELERATOR=""
WORKDIR /app
COPY requirements requirements
RUN pip install --no-cache-dir -c requirements/constraints-3.12.txt \
    -r requirements/library.txt -r requirements/data.txt -r requirements/train.txt \
    -r requirements/serve.txt \
    $(test -z "$ACCELERATOR" || echo "-r requirements/$ACCELERATOR.txt")
COPY pyproject.toml setup.py README.md LICENSE ./
COPY onelive_jax onelive_jax
COPY data_pipelines data_pipelines
COPY experiments experiments
RUN pip install --no-cache-dir --no-deps . && useradd --create-home onelive
USER onelive
WORKDIR /home/onelive
ENTRYPOINT ["onelive"]
CMD ["--help"]
