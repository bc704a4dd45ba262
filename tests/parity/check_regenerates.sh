#!/usr/bin/env bash
# Makes the fixtures of one family anew and compares them with the committed ones: weights and tokenizers byte for byte,
# tokens and texts exactly.
#
#   tests/parity/check_regenerates.sh [MODEL...]     the models whose names start so; llama without
#   tests/parity/check_regenerates.sh --adapters [MODEL...]   the adapters of these models, instead
#   tests/parity/check_regenerates.sh --prepare      makes the Python environment, and no more
#
# PARITY_VENV names the Python environment to use; it is made where it does not exist (some 3 GB are downloaded).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
environment=${PARITY_VENV:-$here/../../.venv}
if ! "$environment/bin/python" -c 'import transformers, torch, sentencepiece, peft' 2>/dev/null; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
        --requirement "$here/requirements.txt" --requirement "$here/requirements-adapters.txt"
fi
[ "${1:-}" != --prepare ] || exit 0

maker=("$here/generate.py" "$here/fixtures")
if [ "${1:-}" = --adapters ]; then
    maker=("$here/adapters.py" "$here/fixtures" "$here/adapters")
    shift
fi
only=()
for model in "${@:-llama}"; do
    only+=(--only "$model")
done
exec "$environment/bin/python" "${maker[@]}" --check "${only[@]}"
