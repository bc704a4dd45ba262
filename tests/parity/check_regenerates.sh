#!/usr/bin/env bash
# Makes the fixtures of one family anew and compares them with the committed ones: weights and tokenizers byte for byte,
# tokens and texts exactly.
#
#   tests/parity/check_regenerates.sh [MODEL...]     the models whose names start so; llama without
#   tests/parity/check_regenerates.sh --prepare      makes the Python environment, and no more
#
# PARITY_VENV names the Python environment to use; it is made where it does not exist (some 3 GB are downloaded).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
environment=${PARITY_VENV:-$here/../../.venv}
if ! "$environment/bin/python" -c 'import transformers, torch, sentencepiece' 2>/dev/null; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
        --requirement "$here/requirements.txt"
fi
[ "${1:-}" != --prepare ] || exit 0

only=()
for model in "${@:-llama}"; do
    only+=(--only "$model")
done
exec "$environment/bin/python" "$here/generate.py" "$here/fixtures" --check "${only[@]}"
