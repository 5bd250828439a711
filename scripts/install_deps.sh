#!/usr/bin/env bash
# Installs what the build needs from Debian 12 (and its derivatives), and only what is missing. Works as
# root, through sudo, and without either when nothing is missing. CUDA is never installed: it is found or not.
set -euo pipefail

packages=(
  build-essential g++ cmake ninja-build pkg-config ccache
  libopenmpi-dev openmpi-bin
  libcereal-dev libcli11-dev libfmt-dev libspdlog-dev libtomlplusplus-dev nlohmann-json3-dev
  libutf8proc-dev libxxhash-dev liburing-dev
  libboost-dev libboost-context-dev libssl-dev
  libgtest-dev
  python3
)

if ! command -v dpkg-query >/dev/null; then
  echo "install_deps.sh: not a Debian system; expecting the equivalents of: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  as_root=(sudo)
  [[ -t 0 ]] || as_root+=(-n)  # nobody is there to type a password
  if ! command -v sudo >/dev/null || ! "${as_root[@]}" true; then
    echo "install_deps.sh: packages are missing, and this user cannot install them. As root, run:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 4
  fi
fi

echo "Installing ${missing[*]}" >&2
apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq)
"${apt_get[@]}" update
"${apt_get[@]}" install -y --no-install-recommends "${missing[@]}"
