# Debian packages: which are needed, which are missing, and their installation. Sourced by runs/setup.sh.
build_packages=(ca-certificates cmake ninja-build g++ python3 python3-venv libcli11-dev libspdlog-dev nlohmann-json3-dev
  libsentencepiece-dev libopenmpi-dev openmpi-bin libgtest-dev libzstd-dev zlib1g-dev ccache git)
lint_packages=(clang-format-14 clang-tidy-14)      # pinned: another version formats differently

missing_packages() {
  local present
  present=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null | awk '$2 == "installed" {print $1}') || true
  comm -23 <(printf '%s\n' "$@" | sort -u) <(sort -u <<<"$present")
}

install_debian_packages() {
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    local tool
    for tool in cmake ninja g++ python3 mpirun; do
      command -v $tool >/dev/null || die "this is not Debian or Ubuntu and '$tool' is missing; install the counterparts of: $*"
    done
    say "not Debian or Ubuntu: using the installed tools and libraries as they are"
    return 0
  fi
  local missing sudo=()
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "Debian packages are missing and this is neither root nor a user with sudo; as root: apt-get install ${missing[*]}"
    [[ ! -t 0 ]] || sudo -v || die "sudo was refused; as root: apt-get install ${missing[*]}"
    sudo=(sudo -n)
  fi
  need_space /usr $((${#missing[@]} * 50)) "installing ${#missing[@]} Debian packages"
  sudo+=(env DEBIAN_FRONTEND=noninteractive)
  step "package lists" "${sudo[@]}" apt-get update
  step "Debian packages: ${missing[*]}" "${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}"
}
