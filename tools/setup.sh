#!/usr/bin/env bash
# Set up everything the project needs: system packages, a virtual environment, the project in it.
#
#   tools/setup.sh           both steps; does nothing, quickly, when nothing has changed
#   tools/setup.sh system    only the system packages
#   tools/setup.sh venv      only the virtual environment
#
# make, the Dockerfile and CI all stand on this one script. Settings, all optional:
#   PYTHON=python3.12            the interpreter to make the virtual environment with (3.11 to 3.13)
#   VENV=/path                   where the virtual environment goes (default: .venv)
#   SKIP_SYSTEM_PACKAGES=1       look for no system packages (a cluster where modules provide them)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
FASHION_MNIST_DIR=/usr/share/datasets/fashion-mnist

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# --- What is there -------------------------------------------------------------------------------------------------

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

# The first interpreter that runs and is of a supported version (a pyenv shim may exist and not run).
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

has_headers() { "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
# A Python outside /usr/bin (pyenv, python.org, an image's /usr/local) is none of the distribution's packages.
is_from_apt() { [[ "$("$1" -c 'import os, sys; print(os.path.realpath(sys.executable))')" == /usr/bin/* ]]; }
python_package() { "$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }
has_library() { [[ "$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null)" == *"$1"* ]]; }
has_pkg_config() { command -v pkg-config >/dev/null && pkg-config --exists "$1"; }

# Names of the packages without which nothing works, one a line.
missing_packages() {
    local python
    if python=$(find_python); then
        if is_from_apt "$python"; then
            has_venv "$python" || echo "$(python_package "$python")-venv"
            has_headers "$python" || echo "$(python_package "$python")-dev"
        fi
    else
        echo python3
    fi
    command -v c++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    has_pkg_config opencv4 || echo libopencv-dev          # FFCV builds against it
    has_pkg_config libturbojpeg || echo libturbojpeg0-dev # and against this
    has_library libGL.so.1 || echo libgl1                 # OpenCV's Python package loads these two
    has_library libglib-2.0.so.0 || echo libglib2.0-0
}

# The packages of a Python new enough: Ubuntu 22.04 has 3.10 as python3, and 3.11 beside it.
python_packages() {
    local version
    for version in 3.11 3.12 3.13; do
        if apt-cache show "python$version-venv" >/dev/null 2>&1; then
            printf '%s\n' "python$version" "python$version-venv" "python$version-dev"
            return
        fi
    done
    fail "apt-get knows no Python 3.11 to 3.13 here; install one any other way and give PYTHON=/path/to/it"
}

# --- System packages -----------------------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }

install_system_packages() {
    local -a missing=() wanted=() python=()
    mapfile -t missing < <(missing_packages)
    wanted=("${missing[@]}")
    # Real images for the tests, and what draws the lineage; everything else does without.
    [ -d "$FASHION_MNIST_DIR" ] || wanted+=(dataset-fashion-mnist)
    command -v dot >/dev/null || wanted+=(graphviz)
    if [ ${#wanted[@]} -eq 0 ]; then
        say "system packages: all present"
        return
    fi
    if ! command -v apt-get >/dev/null || { [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; }; then
        [ ${#missing[@]} -eq 0 ] && return
        fail "these system packages are missing, and without apt-get as root (or sudo) they cannot be installed from here:
    ${missing[*]}
    install them (or what your distribution calls them) and run this again; SKIP_SYSTEM_PACKAGES=1 goes on without looking"
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing system packages with apt-get: ${missing[*]}"
        apt_get update -qq
        if [ "${missing[0]}" = python3 ]; then
            mapfile -t python < <(python_packages)
            [ ${#python[@]} -gt 0 ] || exit 1
            missing=("${python[@]}" "${missing[@]:1}")
        fi
        apt_get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
            fail "apt-get could not install ${missing[*]}; its own words are above"
    fi
    # A distribution without these still runs all but the tests on these images, which then say they were skipped, and
    # all but the pictures of the lineage, whose place then says how to get them.
    [ -d "$FASHION_MNIST_DIR" ] || install_optional dataset-fashion-mnist "the Fashion-MNIST images"
    command -v dot >/dev/null || install_optional graphviz "Graphviz, which draws the lineage"
}

install_optional() {
    if ! apt-cache show "$1" >/dev/null 2>&1; then
        apt_get update -qq || true
    fi
    say "installing $2 with apt-get: $1"
    apt_get install -y -qq --no-install-recommends "$1" >/dev/null || say "no $1 to be had here: going on without it"
}

# --- The virtual environment ---------------------------------------------------------------------------------------

# What the environment was made from; equal fingerprints mean that there is nothing to do.
fingerprint() { cat pyproject.toml constraints.txt tools/setup.sh | sha256sum | cut -d ' ' -f 1; }

is_current() { [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.installed" 2>/dev/null)" = "$(fingerprint)" ]; }

install_venv() {
    local python
    if [ -e "$VENV" ] && [ ! -w "$VENV" ]; then
        fail "$VENV is out of date and belongs to another user: let that user run this, give VENV=/path of your own, or, in a
    container, build the image again from this clone"
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || fail "no Python 3.11, 3.12 or 3.13 found; install one, or give PYTHON=/path/to/it"
        say "making $VENV with $("$python" --version) ($python)"
        "$python" -m venv --clear "$VENV"
    fi
    is_supported "$VENV/bin/python" ||
        fail "$VENV holds $("$VENV/bin/python" --version), 3.11 to 3.13 are supported; move it away and run this again"
    rm -f "$VENV/.installed"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    say "installing the project and the exact versions of constraints.txt (about 6 GB with CUDA's libraries)"
    "$VENV/bin/python" -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools wheel
    "$VENV/bin/python" -m pip install --constraint constraints.txt --editable '.[dev,docs]'
    # What is compiled or linked against the system fails here, with its own message, rather than in a recipe.
    NUMBA_THREADING_LAYER=omp "$VENV/bin/python" -c 'import cv2, ffcv, torch, torchvision' ||
        fail "the installed packages do not import; the reason stands above"
    fingerprint >"$VENV/.installed"
    say "done: $VENV"
}

main() {
    # Said here, once: find_python is asked in subshells, which could only fail for themselves.
    if [ -n "${PYTHON:-}" ] && ! is_supported "$PYTHON"; then
        fail "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13; give one that is, or leave it out"
    fi
    case "${1:-all}" in
    all)
        if is_current; then
            touch "$VENV/.installed" 2>/dev/null || true # an image's environment may belong to root
            return
        fi
        [ -n "${SKIP_SYSTEM_PACKAGES:-}" ] || install_system_packages
        install_venv
        ;;
    system) install_system_packages ;;
    venv) is_current || install_venv ;;
    *) fail "unknown step '$1'; known: system, venv, or none for both" ;;
    esac
}

main "$@"
