#!/bin/sh
# Serve the unlearned model of a run, and ask it by OpenAI's interface (docs/serving.md).
#   sh examples/serve_and_ask.sh RUN_FOLDER "QUESTION"
set -eu

python -m unlearn.serve run="$1" alpha=1 port=8765 name=unlearned > serve.log 2>&1 &
server=$!
trap 'kill $server' EXIT
until grep -q 8765 serve.log; do
    kill -0 $server || { cat serve.log; exit 1; }
    sleep 1
done

PROMPT=$2 python - <<'END'
import os

import httpx

messages = [{"role": "user", "content": os.environ["PROMPT"]}]  # asked in the template of the run
body = {"model": "unlearned", "messages": messages, "max_tokens": 32}
answer = httpx.post("http://127.0.0.1:8765/v1/chat/completions", json=body, timeout=120).json()
print(answer["choices"][0]["message"]["content"])
END
