#!/usr/bin/env bash
# Runs programs in a mounted space, in both I/O modes, and reports which of them worked: git, SQLite with two writers, pip,
# npm, a cargo build, and fsx if it is installed (`cargo install fsx`). Needs the network.
#   scripts/workloads.sh [NAME...]      git sqlite pip npm cargo fsx
set -uo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_package git git
need_package sqlite3 sqlite3
need_python
install_missing
need_fuse
need_rust
say "building"
cargo build --workspace --quiet || exit 1
holofs=$(realpath "${CARGO_TARGET_DIR:-target}/debug/holofs")
begin_run
export ROBOCORP_HOME=$run_dir/home HOME=$run_dir CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
[ -z "${RUSTUP_HOME:-}" ] && [ -d "$(dirname "$CARGO_HOME")/.rustup" ] && RUSTUP_HOME=$(dirname "$CARGO_HOME")/.rustup && export RUSTUP_HOME
mkdir -p "$ROBOCORP_HOME"
echo "packages: workloads" >"$run_dir/blueprint.yaml"
"$holofs" record -q "$ROBOCORP_HOME" --blueprint "$run_dir/blueprint.yaml" -- sh -c '
    cd "$HOLOFS_STAGE" && mkdir lib && head -c 3000000 /dev/urandom >lib/lower.dat && echo text >lib/small' >/dev/null ||
    die "cannot record a library"

# Each function runs in its own directory of the space.
do_git() {
    git init -q source && cd source && for i in $(seq 300); do echo "$i" >"f$i"; done &&
        git add -A && git -c user.name=n -c user.email=e commit -qm one && cd .. &&
        git clone -q --no-local source copy && git -C copy fsck --full --strict && [ "$(git -C copy ls-files | wc -l)" = 300 ] &&
        git -C copy gc -q && git -C copy status --porcelain | wc -l | grep -qx 0
}
do_sqlite() {
    sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t(w, n);' >/dev/null
    for writer in 1 2; do
        (for n in $(seq 300); do echo "PRAGMA busy_timeout=60000; INSERT INTO t VALUES($writer, $n);"; done | sqlite3 db >/dev/null) &
    done
    wait
    [ "$(sqlite3 db 'SELECT count(*) FROM t; PRAGMA integrity_check;' | tr '\n' ' ')" = "600 ok " ]
}
do_pip() {
    python3 -m venv env && env/bin/pip install -q --disable-pip-version-check requests pyyaml attrs click jinja2 flask rich \
        pytest packaging six python-dateutil urllib3 idna certifi charset-normalizer toml tomlkit docutils pygments chardet \
        pluggy iniconfig werkzeug itsdangerous blinker markdown tabulate decorator wrapt typing-extensions &&
        env/bin/pip check && env/bin/python -c 'import requests, yaml, attr, flask, rich, pytest, pygments'
}
do_npm() {
    command -v npm >/dev/null || return 77
    echo '{"name":"w","version":"1.0.0"}' >package.json
    npm install --silent --no-audit --no-fund --cache "$PWD/cache" express lodash typescript && node -e 'require("express"); require("lodash"); require("typescript")'
}
do_cargo() {
    cargo init -q --vcs none --name w . && echo 'fn main() { println!("built"); }' >src/main.rs &&
        CARGO_TARGET_DIR=$PWD/target cargo build -q && [ "$(target/debug/w)" = built ] && touch src/main.rs &&
        CARGO_TARGET_DIR=$PWD/target cargo build -q
}
do_fsx() {
    local fsx
    fsx=$(command -v fsx || ls "$CARGO_HOME/bin/fsx" 2>/dev/null) || return 77
    "$fsx" -N 100000 -S 7 new.dat >/dev/null && "$fsx" -N 100000 -S 8 ../lib/lower.dat >/dev/null
}

failed=0
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(git sqlite pip npm cargo fsx)
for io in cached passthrough; do
    space=$("$holofs" mount --io "$io" "$ROBOCORP_HOME" "$io") || die "cannot mount"
    for name in "${names[@]}"; do
        begin=$SECONDS status=0
        (mkdir "$space/$name" && cd "$space/$name" && "do_$name") >"$run_dir/$name.log" 2>&1 || status=$?
        case $status in
            0) verdict=ok ;;
            77) verdict='not run: not installed' ;;
            *)
                verdict="FAILED ($status)"
                failed=1
                tail -15 "$run_dir/$name.log"
                ;;
        esac
        printf '%-12s %-8s %4d s  %s\n' "$io" "$name" $((SECONDS - begin)) "$verdict"
    done
    "$holofs" unmount -q "$space" >/dev/null || failed=1
done
exit $failed
