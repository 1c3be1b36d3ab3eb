# The private environment that the scripts share. To be sourced, with $root set.
#
# PYTHON=... chooses the interpreter that a new .venv is built on.

venv=$root/.venv
unset PYTHONHOME PYTHONPATH # nothing of the caller's Python may leak in

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

# setup LOCK...: makes .venv hold what the locks list, requirements.lock among them. Costs a few
# milliseconds if it does.
setup() {
  up_to_date "$@" && return
  # The lock file doubles as a mutex: of two first starts, the second waits for the first.
  (
    if command -v flock >/dev/null; then flock 9; fi
    up_to_date "$@" || install "$@"
  ) 9<"$root/requirements.lock"
}

up_to_date() {
  local lock
  [[ -x $venv/bin/python ]] || return
  for lock in "$@"; do cmp -s "$root/$lock" "$venv/$lock" || return; done
}

install() {
  echo 'Setting up .venv (first use only) ...' >&2
  # The locks are complete, hence no dependencies; and nobody should need a compiler.
  local python options=(--no-deps --only-binary=:all: "${@/#/--requirement=}")
  local pip=("$venv/bin/python" -P -m pip -qq --disable-pip-version-check --no-input install)
  if command -v uv >/dev/null; then pip=(uv pip install --quiet --python="$venv/bin/python"); fi
  # The copies of the locks are put there last: without them, packages may be cut off.
  if [[ ! -x $venv/bin/python || ! -e $venv/requirements.lock ]]; then
    python=$(find_python) || exit
    if [[ ${pip[0]} == uv ]]; then
      uv venv --quiet --clear --seed --python="$python" "$venv"
    else
      # Debian without python3-venv has no ensurepip, but its pip can equip a bare environment.
      "$python" -P -m venv --clear "$venv" || {
        "$python" -P -m venv --clear --without-pip "$venv" &&
          "$python" -P -m pip --python "$venv/bin/python" install -qq pip
      }
    fi >&2 || die "$python cannot create $venv, see above; on Debian: apt install python3-venv"
  fi
  cd "$root"
  rm -f "$venv"/*.lock
  "${pip[@]}" "${options[@]}" >&2 ||
    die 'the installation failed, see above; the next start tries again'
  cp "$@" "$venv"
}

# Prints the resolved path: a .venv on /usr/bin/python3.11 instead of /usr/bin/python3 is rebuilt
# once the system moves to another Python, rather than failing with all packages missing.
find_python() {
  local code='import os, sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit(1)
print(os.path.realpath(sys.executable))'
  local candidate candidates=(python3 python3.13 python3.12 python3.11)
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    "$candidate" -I -c "$code" 2>/dev/null && return
  done
  die "needs Python 3.11, 3.12 or 3.13, and found none as: ${candidates[*]}; set PYTHON to one"
}
