# Sourced by what asks a server of the program in KAITO_BINARY, with these set by it:
#   server_log     the file that the server writes to
# shellcheck shell=bash

# The server that runs; empty without one.
server=

# serve ARGUMENT...: a server on a free port, in place of the one before. Its address is in KAITO_URL once it is healthy.
serve() {
    end_server
    # Emptied here, not by the process that begins: what the server before has said must not be read as this one's, nor may the
    # file be missing yet.
    : >"$server_log"
    "$KAITO_BINARY" serve "$@" --host 127.0.0.1 --port 0 >>"$server_log" 2>&1 &
    server=$!
    for _ in $(seq 1200); do
        KAITO_URL=$(grep --only-matching --max-count=1 'http://127\.0\.0\.1:[0-9]*' "$server_log" || true)
        [ -z "$KAITO_URL" ] || ! curl --silent --fail "$KAITO_URL/healthz" >/dev/null || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$server_log" >&2
    echo "the server did not become healthy" >&2
    exit 1
}

# end_server: ends it, if there is one, and waits for that.
end_server() {
    [ -n "$server" ] || return 0
    kill "$server" 2>/dev/null || true
    wait "$server" || true
    server=
}
