# What the checks of images share: a registry, and containers without a container runtime. To be sourced.

# need PACKAGE...: installs what is not there. Debian's and Ubuntu's names.
need() {
    local missing=() package
    for package in "$@"; do dpkg --status "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ "${#missing[@]}" -eq 0 ] && return
    local as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update
    # The registry's package would start one of its own, on a port that is not ours.
    "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
}

# programs: sets kaito, to KAITO_BINARY or what is built here, and random_checkpoint, which makes weights; it lies beside
# kaito, or is built.
programs() {
    local release=${CARGO_TARGET_DIR:-$PWD/target}/release
    kaito=${KAITO_BINARY:-}
    if [ -z "$kaito" ]; then
        cargo build --release
        kaito=$release/kaito
    fi
    kaito=$(realpath "$kaito")
    [ -x "$kaito" ] || { echo "there is no program $kaito" >&2; return 1; }
    random_checkpoint=$(dirname "$kaito")/random-checkpoint
    if [ ! -x "$random_checkpoint" ] || [ -z "${KAITO_BINARY:-}" ]; then
        cargo build --release --package random-checkpoint
        random_checkpoint=$release/random-checkpoint
    fi
}

# begin: a folder for everything, removed at the end with every process that was started.
begin() {
    work=$(mktemp --directory "${TMPDIR:-/tmp}/kaito-image.XXXXXX")
    children=()
    trap finish EXIT
    # buildah's images go into the folder too.
    cat >"$work/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/storage-run"
CONF
    export CONTAINERS_STORAGE_CONF="$work/storage.conf"
}
finish() {
    local status=$? child
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait || true
    buildah umount --all >/dev/null 2>&1 || true
    umount --recursive "$work/storage/overlay" 2>/dev/null || true
    # Whatever is still mounted there is not ours to delete.
    rm -rf --one-file-system "$work"
    exit "$status"
}

# wait_until COMMAND...: a minute at most.
wait_until() {
    for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
    echo "gave up waiting for: $*" >&2
    return 1
}

# start_registry NAME [AUTH]: sets registry to its address. AUTH is a file of users.
start_registry() {
    local log="$work/$1.log" config="$work/$1.yml"
    mkdir -p "$work/$1"
    {
        printf 'version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %s}\n  delete: {enabled: true}\n' "$work/$1"
        printf 'http: {addr: "127.0.0.1:0", secret: test}\n'
        [ -z "${2:-}" ] || printf 'auth: {htpasswd: {realm: test, path: %s}}\n' "$2"
    } >"$config"
    docker-registry serve "$config" >"$log" 2>&1 &
    children+=($!)
    wait_until grep --quiet 'listening on 127' "$log"
    registry=$(grep --only-matching --max-count=1 'listening on 127[0-9.:]*' "$log" | cut --delimiter=' ' --fields=3)
}

# unpack REFERENCE NAME: pulls by skopeo, unpacks by umoci.
unpack() {
    skopeo copy --quiet --src-tls-verify=false "$1" "oci:$work/$2-layout:latest"
    umoci unpack --image "$work/$2-layout:latest" "$work/$2" >/dev/null
    rm -rf "$work/$2-layout"
}

# contain NAME [MOUNT TARGET]... -- ARGUMENT...: runs an unpacked image as a container would: its own root, read-only, its
# user, its environment, its entrypoint with ARGUMENT... instead of its command; KAITO_PORT and /proc, /dev as everywhere.
contain() { (become_contained "$@"); }

# become_contained NAME [MOUNT TARGET]... -- ARGUMENT...: the same in place of the shell that calls it.
become_contained() {
    local bundle="$work/$1" mounts=()
    shift
    while [ "$1" != -- ]; do mounts+=("$1" "$2"); shift 2; done
    shift
    local config="$bundle/config.json"
    mapfile -t environment < <(jq --raw-output '.process.env[]' "$config")
    local user entrypoint
    user=$(jq --raw-output '"\(.process.user.uid):\(.process.user.gid)"' "$config")
    entrypoint=$(jq --raw-output '.process.args[0]' "$config")
    # Their folders are made as a runtime makes them, before the root is read-only.
    mkdir -p "$bundle/rootfs/proc" "$bundle/rootfs/dev"
    local i
    for ((i = 1; i < ${#mounts[@]}; i += 2)); do mkdir -p "$bundle/rootfs${mounts[i]}"; done
    exec unshare --mount --pid --fork --kill-child bash -c '
        set -euo pipefail
        root=$1 user=$2 count=$3
        shift 3
        mount --bind "$root" "$root"
        while [ "$count" -gt 0 ]; do
            mount --bind -o ro "$1" "$root$2"
            mount -o remount,bind,ro "$root$2"
            shift 2
            count=$((count - 2))
        done
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=755 dev "$root/dev"
        mkdir --mode=1777 "$root/dev/shm"
        for device in null zero random urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
        mount -o remount,bind,ro "$root"
        exec env --ignore-environment "${@:2:$1}" "$(command -v chroot)" --userspec="$user" --groups="" "$root" "${@:$1 + 2}"
    ' bash "$bundle/rootfs" "$user" "${#mounts[@]}" "${mounts[@]}" "${#environment[@]}" "${environment[@]}" "$entrypoint" "$@"
}

# serve_contained ARGUMENT...: `contain` in the background until it is healthy; sets address and container.
serve_contained() {
    serve_log="$work/serve.log"
    # Emptied here, not by the process that begins: what the server before has said must not be read as this one's.
    : >"$serve_log"
    # Port 0: the system chooses, the log tells.
    become_contained "$@" >>"$serve_log" 2>&1 &
    container=$!
    children+=("$container")
    wait_until grep --quiet 'http://' "$serve_log" || { cat "$serve_log"; return 1; }
    address=127.0.0.1:$(grep --only-matching --max-count=1 'http://[^ ]*' "$serve_log" | sed 's/.*://')
    wait_until curl --silent --fail "http://$address/healthz" || { cat "$serve_log"; return 1; }
}

# end_contained: SIGTERM to the server, as a container runtime does; it has to end with status 0.
end_contained() {
    kill -TERM "$(pgrep --parent "$container")"
    wait "$container" || { echo "the server ended with status $?"; cat "$serve_log"; return 1; }
}

# ask BODY: an answer of the contained server to a request of /chat.
ask() {
    curl --silent --show-error --fail "http://$address/chat" -H 'Content-Type: application/json' -d "$1"
}
