# The private environment that the scripts share. To be sourced, with $root set.
#
# PYTHON=... chooses the interpreter that a new .venv is built on.

venv=$root/.venv
unset PYTHONHOME PYTHONPATH # nothing of the caller's Python may leak in

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# setup LOCK...: makes .venv hold what the locks list. Costs a few milliseconds if it does.
setup() {
  up_to_date "$@" && return
  # The lock file doubles as a mutex: of two first starts, the second waits for the first.
  (
    if command -v flock >/dev/null; then flock 9; fi
    if ! up_to_date "$@"; then install "$@"; fi
  ) 9<"$root/requirements.lock"
}

up_to_date() {
  [[ -x $venv/bin/python ]] || return
  local lock
  for lock in "$@"; do
    [[ -f $venv/$lock.sha256 ]] || return
    [[ $(<"$venv/$lock.sha256") == "$(sha256sum <"$root/$lock")" ]] || return
  done
}

install() {
  echo 'Setting up .venv (first use only) ...' >&2
  local info lock arguments=()
  # pip writes RECORD last: without it, the package was cut off, yet pip would take it as installed.
  for info in "$venv"/lib/python*/site-packages/*.dist-info; do
    [[ -e $info/RECORD ]] || rm -rf "$info"
  done
  if ! usable; then create; fi
  for lock in "$@"; do arguments+=(-r "$root/$lock"); done
  # The locks are complete, hence no dependencies; and nobody should need a compiler.
  "$venv/bin/python" -P -m pip install -qq --disable-pip-version-check --no-input --no-deps \
    --only-binary=:all: "${arguments[@]}" >&2 ||
    die 'the installation failed, see above; the next start tries again'
  # The stamps come last, so that an interrupted installation is repeated.
  for lock in "$@"; do sha256sum <"$root/$lock" >"$venv/$lock.sha256"; done
}

usable() {
  "$venv/bin/python" -P - 2>/dev/null <<'PYTHON'
import importlib.metadata, sys
importlib.metadata.version("pip")
sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON
}

create() {
  local python log
  python=$(find_python)
  log=$("$python" -P -m venv --clear "$venv" 2>&1) && return
  # Debian without python3-venv has no ensurepip, but its pip can equip a bare environment. (It
  # refuses to install into the system, not into an environment.)
  log+=$'\n'$("$python" -P -m venv --clear --without-pip "$venv" 2>&1 &&
    "$python" -P -m pip --python "$venv/bin/python" install -qq pip 2>&1) && return
  if command -v virtualenv >/dev/null; then
    log+=$'\n'$(virtualenv --quiet --clear --python "$python" "$venv" 2>&1) && return
  fi
  printf '%s\n' "$log" >&2
  die "$python cannot create $venv; on Debian or Ubuntu: apt install python3-venv"
}

# Prints the resolved path: a .venv on /usr/bin/python3.11 instead of /usr/bin/python3 is rebuilt
# once the system moves to another Python, rather than failing with all packages missing.
find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    "$candidate" -I - 2>/dev/null <<'PYTHON' && return
import os, sys
(3, 11) <= sys.version_info < (3, 14) or sys.exit(1)
print(os.path.realpath(sys.executable))
PYTHON
  done
  die "needs Python 3.11, 3.12 or 3.13, and found none as: ${candidates[*]}; set PYTHON to one"
}
