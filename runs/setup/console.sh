# Sourced by the scripts of runs/: steps with visible progress, and failures said in one sentence.
set -Eeuo pipefail
: "${log:?the file that takes the output of every step}"
started=$SECONDS
step_pid=

say() { printf '[%4d s] %s\n' $((SECONDS - started)) "$*"; }
die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}
trap 'die "stopped at line $LINENO of ${BASH_SOURCE[0]##*/}: $BASH_COMMAND"' ERR
# A background child of a script ignores Ctrl-C; each step is a process group of its own, ended as one.
trap '[[ -z $step_pid ]] || kill -- "-$step_pid" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

# What a log says went wrong, as a sentence with its cure. First match wins; nothing is printed for an unknown cause.
explain() {
  local text
  text=$(tail -n 200 "$1" | tr '\n' ' ')
  case $text in
    *"No space left on device"*) echo "the disk is full; free some space, or set SWITCHYARD_CACHE to a folder on a larger disk" ;;
    *"Could not get lock"* | *"is held by process"*) echo "another package manager is running; wait for it and try again" ;;
    *"CERTIFICATE_VERIFY_FAILED"* | *"certificate verify failed"* | *"ertificate verification failed"* | *"SSL certificate problem"*)
      echo "the server's certificate is not trusted, as behind a proxy that opens TLS; add the proxy's certificate to the system's (ca-certificates, update-ca-certificates) and set PIP_CERT to its file" ;;
    *"Temporary failure resolving"* | *"Could not resolve"* | *"Name or service not known"* | *"Temporary failure in name resolution"* | \
      *"Network is unreachable"* | *"Connection refused"* | *"Connection timed out"* | *"Failed to establish a new connection"* | \
      *"Read timed out"* | *"Could not connect to"* | *"ProxyError"*)
      echo "no network: the package registry cannot be reached; check the connection, proxy settings and /etc/pip.conf" ;;
    *"Could not find a version that satisfies"* | *"No matching distribution"*)
      echo "the Python registry has no such package for $(python3 --version 2>&1); torch 2.11.0 needs Python 3.10 to 3.14" ;;
    *"Unable to locate package"* | *"has no installation candidate"*) echo "a Debian package is not to be had; on Ubuntu, enable 'universe'" ;;
    *"Hash Sum mismatch"* | *"THESE PACKAGES DO NOT MATCH THE HASHES"*) echo "a download arrived damaged; try again" ;;
    *"Killed signal terminated program"* | *"virtual memory exhausted"* | *"Cannot allocate memory"*)
      echo "the compiler ran out of memory; try again with JOBS=1" ;;
    *"No CMAKE_CXX_COMPILER could be found"*) echo "there is no C++ compiler; install g++" ;;
    *"Permission denied"* | *"are you root?"*) echo "a permission is missing; run as root, with sudo, or as the owner of the files" ;;
  esac
}

# step TITLE COMMAND…: runs the command with its output in $log, and shows the log's last line as it goes: in place on a
# terminal, every 20 s elsewhere. A failure shows the end of the log and a sentence.
step() {
  local title=$1 from=$SECONDS shown=$SECONDS begin status=0 tick=0.05 line
  shift
  [[ -n ${quiet:-} ]] || say "$title"
  begin=$(wc -c <"$log")
  set -m
  "$@" >>"$log" 2>&1 </dev/null &
  step_pid=$!
  set +m
  while kill -0 $step_pid 2>/dev/null; do
    sleep $tick
    ((SECONDS - from < 2)) || tick=0.5
    [[ -z ${quiet:-} ]] && ((SECONDS - shown >= (${CONSOLE_PERIOD_S:-20}))) || continue
    line=$(tail -c 400 "$log" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c "1-$((${COLUMNS:-80} - 14))") || true
    if [[ -t 1 ]]; then printf '\r\033[K         %s' "$line"; else say "  … $line"; fi
    shown=$SECONDS
  done
  wait $step_pid || status=$?
  step_pid=
  [[ ! -t 1 || -n ${quiet:-} ]] || printf '\r\033[K'
  ((status == 0)) && return 0
  tail -c +$((begin + 1)) "$log" >"$log.step"
  if grep -qE '(error|Error|ERROR|FAILED)' "$log.step"; then
    grep -E -A6 '(^E: |CMake Error|error:|Error:|ERROR:|FAILED:)' "$log.step" | head -n 40 >&2 || true
  else
    tail -n 20 "$log.step" >&2
  fi
  local reason
  reason=$(explain "$log.step")
  die "failed: $title: ${reason:-see the lines above and $log}"
}
[[ ! -t 1 ]] || CONSOLE_PERIOD_S=1

# need_space FOLDER MEGABYTES WHAT
need_space() {
  local folder=$1 free
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(df -Pm "$folder" | awk 'NR == 2 {print $4}')
  ((free >= $2)) || die "$3 needs $2 MB of free disk in $folder, which has $free MB; free some space${4:+, or $4}"
}
