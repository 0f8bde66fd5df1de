#!/usr/bin/env bash
# Lint, then the tests. Default: the fast tier. `--all`: everything. Other arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev

select=(-m 'not slow')
if [ "${1:-}" = --all ]; then
    select=()
    shift
fi
ruff check .
ruff format --check .
exec python -m pytest --numprocesses 2 --dist worksteal "${select[@]}" "$@"
