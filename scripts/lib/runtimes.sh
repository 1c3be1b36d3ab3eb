# What proves a run again elsewhere: `exporter verify` with LiteRT and onnxruntime, and no TensorFlow.
# To be sourced after venv.sh, with $root set.

# finished_run ARGUMENT...: ends the script unless its arguments are the folder of a run alone.
finished_run() {
  (($# == 1)) || die 'usage: scripts/'"${0##*/}"' DIR, the folder of a finished run'
  local name
  for name in manifest.json reference.npz; do
    [[ -f $1/$name ]] || die "'$1' is not the folder of a finished run: it has no $name"
  done
}

# need PACKAGES TOOL...: ends the script, before any work, if a tool of these Debian packages is missing.
need() {
  local tool missing=()
  for tool in "${@:2}"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  ((${#missing[@]} == 0)) || die "missing: ${missing[*]}; on Debian: apt-get install $1"
}

# Prints the packages that it takes, at the versions of the lock file.
pinned() {
  local name names=(ai-edge-litert backports.strenum flatbuffers markdown-it-py mdurl numpy onnxruntime)
  names+=(packaging protobuf Pygments rich tqdm typing_extensions)
  for name in "${names[@]}"; do grep "^${name//./\\.}==" "$root/requirements.lock"; done
}
