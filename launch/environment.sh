#!/usr/bin/env bash
# Makes .venv with the pinned packages and ssljax in it: `source launch/environment.sh [extra,...]`.
# Runs pip only when setup.cfg, the constraints or the extras have changed since the last time.
# Sourced by the other scripts; needs bash and Python 3.11 or later, no root.

ssljax_environment() {
    local extras=$1 root stamp wanted python
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    cd "$root" || return
    python=$(ssljax_python) || return
    # One that was interrupted while it was made has a python, but no pip.
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        "$python" -m venv .venv || return
    fi
    stamp=.venv/installed${extras:+-${extras//,/-}}
    wanted=$(cat setup.cfg pyproject.toml launch/constraints.txt; echo "$root")
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing into .venv (once; a few minutes) ..."
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --constraint launch/constraints.txt --editable ".${extras:+[$extras]}" || return
        printf '%s\n' "$wanted" >"$stamp"
    fi
    PATH="$root/.venv/bin:$PATH"
}

ssljax_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    echo "no Python 3.11 to 3.13 found; install one (python.org) and try again" >&2
    return 1
}

ssljax_environment "${1:-}" || exit 1
