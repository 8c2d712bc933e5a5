#!/usr/bin/env bash
# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
#
# Make .venv: Python packages, ROS 2 and this package, ready to be sourced (.venv/setup.bash).
#
#   bash scripts/make_env.sh              what `make env` calls
#   bash scripts/make_env.sh --check      change nothing; exit status 1 if there is something to do
#
#   PYTHON=python3.12                     the interpreter to use (otherwise the first fitting one)
#   OCDIT_ROS=auto|distro|wheels          auto: an installed ROS 2 if there is one, wheels otherwise
#
# A second run finds the stamps of the first one and changes nothing.

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$venv/make_env.log
min_seconds=$SECONDS

# What takes time runs as a child that is waited for: a shell that runs it in the foreground would hear of a signal only
# when it is over, and Ctrl-C or kill would leave pip at work. Where the shell cannot pass the signal on (SIGKILL), the
# kernel does.
bound=()
if command -v setpriv >/dev/null; then bound=(setpriv --pdeathsig TERM); fi
run_child() {
    "${bound[@]}" "$@" &
    wait %%
}

stop() {
    local pid
    trap - INT TERM HUP
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null || true; done
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

say() { printf '[env] %s\n' "$*"; }
die() { printf '[env] ERROR: %s\n' "$*" >&2; exit 1; }

# --- which ROS 2 ---------------------------------------------------------------------------------------------------

# Distributions since Jazzy, in the order of their release; an installation of a newer one wins.
known_distros="jazzy kilted lyrical rolling"

# Prints the name of the ROS 2 distribution to build on, or nothing.
find_distro() {
    local name found=""
    if [[ ${OCDIT_ROS:-auto} == wheels ]]; then return; fi
    # An already sourced one. The wheels of an earlier .venv also set ROS_DISTRO, but have no setup.bash of their own.
    if [[ -n ${ROS_DISTRO:-} && -n ${AMENT_PREFIX_PATH:-} && -z ${OCDIT_ROS_WHEELS:-} ]]; then
        case " $known_distros " in
            *" $ROS_DISTRO "*) echo "$ROS_DISTRO"; return ;;
            *) die "the sourced ROS 2 distribution is $ROS_DISTRO, but this package needs Jazzy or newer:" \
                   "open a shell without it, or set OCDIT_ROS=wheels" ;;
        esac
    fi
    for name in $known_distros; do
        if [[ -f /opt/ros/$name/setup.bash ]]; then found=$name; fi
    done
    echo "$found"
}

# Where the distribution is, when it is not sourced yet.
source_distro() {
    if [[ -z ${AMENT_PREFIX_PATH:-} || -n ${OCDIT_ROS_WHEELS:-} ]]; then
        set +u
        # shellcheck disable=SC1090
        source "/opt/ros/$1/setup.bash"
        set -u
    fi
}

# --- which Python --------------------------------------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# The program itself: not a shim in front of it, and not the one of an activated environment, which may be .venv.
# The same file under the same name, however it was found: a change of interpreter means a new environment.
base_interpreter() {
    readlink -f -- "$("$1" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')"
}

# Prints the interpreter to use: with a distribution the one that its modules are compiled for.
find_python() {
    local distro=$1 candidate
    if [[ -n ${PYTHON:-} ]]; then
        [[ -n $(python_version "$PYTHON") ]] || die "PYTHON=$PYTHON does not start"
        base_interpreter "$PYTHON"
        return
    fi
    if [[ -n $distro ]]; then
        for candidate in /usr/bin/python3 python3; do
            if "$candidate" -c 'import rclpy' 2>/dev/null; then base_interpreter "$candidate"; return; fi
        done
        die "ROS 2 $distro is there, but no python3 can import its rclpy:" \
            "install ros-$distro-rclpy, or set PYTHON to the interpreter that ROS uses, or OCDIT_ROS=wheels"
    fi
    # Versions for which all wheels exist, rclpy's being the choosy ones.
    for candidate in python3 python3.12 python3.11 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3; do
        case $(python_version "$candidate") in
            3.11 | 3.12) base_interpreter "$candidate"; return ;;
        esac
    done
}

# --- system packages -----------------------------------------------------------------------------------------------

# Prints the apt packages that are missing, judged by what they provide, so it also works where apt is not used.
missing_packages() {
    local python=$1 wheels=$2 library
    {
        while read -r library package; do
            # Not a pipe into grep -q: with pipefail, its early end would count as a failure of ldconfig.
            case $libraries in *"$library "*) ;; *) echo "$package" ;; esac
        done <<'TABLE'
libusb-1.0.so.0 libusb-1.0-0
libGL.so.1 libgl1
libEGL.so.1 libegl1
libX11.so.6 libx11-6
libgomp.so.1 libgomp1
TABLE
        if [[ -z $python ]]; then
            echo python3 python3-venv python3-dev
        else
            "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$(python_version "$python")-venv"
            if [[ $wheels == yes ]]; then
                "$python" -c 'import os, sysconfig
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
                    echo "python$(python_version "$python")-dev"
            fi
        fi
        if [[ $wheels == yes ]]; then
            command -v gcc >/dev/null || echo gcc
            command -v g++ >/dev/null || echo g++
            [[ -e /usr/include/stdlib.h ]] || echo libc6-dev
        fi
    } | tr '\n' ' '
}

# What of ROS has to be there, and what is only used where it is.
ros_needed="rclpy lifecycle_msgs sensor_msgs std_msgs std_srvs diagnostic_msgs rcl_interfaces vision_msgs ament_index_python"
ros_optional="cv_bridge launch_ros"

# Prints the apt packages of those modules that the distribution lacks.
missing_ros_packages() {
    local python=$1 distro=$2 module
    for module in $3; do
        "$python" -c "import importlib.util as u; raise SystemExit(u.find_spec('$module') is None)" 2>/dev/null ||
            printf 'ros-%s-%s ' "$distro" "${module//_/-}"
    done
}

install_packages() {
    local packages=$1
    [[ -n ${packages// /} ]] || return 0
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        die "these system packages are missing: ${packages% }. Install them (sudo apt-get install ${packages% })," \
            "then run make env again."
    fi
    say "installing system packages: $packages(up to a minute)"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    run_child apt-get update >"$log.apt" 2>&1 &&
        run_child apt-get install -y --no-install-recommends $packages >>"$log.apt" 2>&1 ||
        die "apt-get could not install ${packages% }: see $log.apt (network, or package sources?)"
}

# --- pip -----------------------------------------------------------------------------------------------------------

# Counts the packages while pip collects them: its own output would be thousands of lines.
progress() {
    local total=$1 n=0 line large='^ *Downloading ([^ ]+) \(([0-9]{3,}[0-9.]* MB|[0-9.]+ GB)\)'
    while IFS= read -r line; do
        if [[ $line == "Collecting "* ]]; then
            if ((n++ % 20 == 0)); then
                line=${line#Collecting }
                printf '[env]   %3d of %d  %s\n' "$n" "$total" "${line%% *}"
            fi
        elif [[ $line =~ $large ]]; then
            say "    downloading ${BASH_REMATCH[1]} (${BASH_REMATCH[2]})"
        elif [[ $line == "Installing collected packages"* ]] && ((total > 1)); then
            say "  writing $total packages to disk (1 to 5 minutes)"
        fi
    done
}

pip_install() {
    local total=$1
    shift
    # Packages of the user (~/.local) or of another environment do not count. Byte code is left to the first import:
    # most of these modules are never imported, and compiling all of them takes a minute.
    PYTHONNOUSERSITE=1 "${bound[@]}" "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
        --no-warn-script-location --no-compile --progress-bar off "$@" 2>&1 | tee -a "$log" | progress "$total" &
    if ! wait %%; then
        tail -n 15 "$log" >&2
        die "pip could not install the Python packages: see the lines above and $log; run make env again," \
            "what was fetched is kept"
    fi
}

# --- setup.bash ----------------------------------------------------------------------------------------------------

write_setup() {
    local distro=$1
    {
        cat <<'SETUP'
# Written by scripts/make_env.sh. Source it like the setup file of a ROS workspace: source .venv/setup.bash
_ocdit_venv=$(builtin cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" >/dev/null && pwd)
SETUP
        if [[ -n $distro ]]; then
            cat <<SETUP
if [ "\${ROS_DISTRO:-}" != "$distro" ] || [ -z "\${AMENT_PREFIX_PATH:-}" ]; then
    source "$ros_setup"
fi
SETUP
        else
            cat <<'SETUP'
# ROS 2 Jazzy from wheels: the libraries are found by a start-up hook of the environment's interpreter, which must
# not believe that another environment's hook has already run.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
export OCDIT_ROS_WHEELS=1 ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
# Shared memory large enough for camera images (Fast DDS: 0.5 MB otherwise, which drops them under best effort).
if [ -z "${FASTRTPS_DEFAULT_PROFILES_FILE:-}" ] && [ -f "$_ocdit_venv/share/ocdit_ros/config/fastdds_shm.xml" ]; then
    export FASTRTPS_DEFAULT_PROFILES_FILE=$_ocdit_venv/share/ocdit_ros/config/fastdds_shm.xml
fi
SETUP
        fi
        cat <<'SETUP'
source "$_ocdit_venv/bin/activate"
case ":${AMENT_PREFIX_PATH:-}:" in
    *":$_ocdit_venv:"*) ;;
    *) export AMENT_PREFIX_PATH=$_ocdit_venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH} ;;
esac
unset _ocdit_venv
SETUP
    } >"$venv/setup.bash"
    # A colcon workspace that is built on top of this environment sources it by this name.
    cat >"$venv/local_setup.bash" <<'SETUP'
# Written by scripts/make_env.sh, for workspaces on top of this environment.
source "$(builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd)/setup.bash"
SETUP
}

# --- stamps --------------------------------------------------------------------------------------------------------

# Everything the environment is made from. The interpreter counts with its version, ROS with its name.
environment_stamp() {
    {
        echo "$1 $2 $3"
        cd -- "$root"
        cat requirements/*.in requirements/*.txt scripts/make_env.sh scripts/build_interfaces.py
        cat third_party/vision_msgs/package.xml third_party/vision_msgs/msg/*.msg
    } | sha256sum | cut -d ' ' -f 1
}

# What the installation of this package itself depends on: its description, and which data files there are.
package_stamp() {
    cd -- "$root"
    {
        cat setup.py setup.cfg package.xml pyproject.toml
        data_files
    } | sha256sum | cut -d ' ' -f 1
}

# --- this package --------------------------------------------------------------------------------------------------

# The data files that setup.py names; an editable installation by pip leaves them out.
data_files() {
    local folder
    echo package.xml
    for folder in launch config weights; do
        if [[ -d $folder ]]; then find "$folder" -maxdepth 1 -type f ! -name '.*'; fi
    done | sort
}

# Editable: the Python modules stay in the tree, and share/ocdit_ros holds links, as after colcon --symlink-install.
# Links to files, not to folders: whoever replaces this installation by another one must not write into the tree.
install_package() {
    local file share=$venv/share/ocdit_ros index=$venv/share/ament_index/resource_index/packages program
    pip_install 1 --no-deps --no-build-isolation --force-reinstall --editable "$root"
    rm -rf "$share"
    cd -- "$root"
    while IFS= read -r file; do
        mkdir -p "$share/$(dirname -- "$file")"
        ln -s "$root/$file" "$share/$file"
    done < <(data_files)
    mkdir -p "$index"
    ln -sf "$root/resource/ocdit_ros" "$index/ocdit_ros"
    # ros2 run and launch look in lib/<package>, pip writes to bin.
    mkdir -p "$venv/lib/ocdit_ros"
    for program in $(sed -n 's/^ *"\([a-z_]*\) = ocdit_ros\..*:main",$/\1/p' setup.py); do
        ln -sf "../../bin/$program" "$venv/lib/ocdit_ros/$program"
    done
}

# Byte code of what this package imports, also where PYTHONDONTWRITEBYTECODE is set: there each start of the node would
# compile torch and the others anew. All of site-packages would take minutes, and most of it is never imported.
compile_imports() {
    PYTHONNOUSERSITE=1 run_child env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c '
import importlib, pkgutil, ocdit_ros
for module in pkgutil.walk_packages(ocdit_ros.__path__, "ocdit_ros."):
    if module.name != "ocdit_ros.preview":  # its library is an extra
        importlib.import_module(module.name)' >>"$log" 2>&1
}

holds() { [[ -f $1 && $(<"$1") == "$2" ]]; }

# --- main ----------------------------------------------------------------------------------------------------------

check=no
case "$*" in
    "") ;;
    --check) check=yes ;;
    *) die "unknown argument '$*': there is --check, or none" ;;
esac
case ${OCDIT_ROS:-auto} in auto | distro | wheels) ;; *) die "OCDIT_ROS is '$OCDIT_ROS': use auto, distro or wheels" ;; esac

distro=$(find_distro)
if [[ -z $distro && ${OCDIT_ROS:-auto} == distro ]]; then
    die "OCDIT_ROS=distro, but there is no ROS 2 Jazzy or newer: source one, or install it below /opt/ros"
fi
ros_setup=
if [[ -n $distro ]]; then
    wheels=no
    source_distro "$distro"
    # The sourced distribution's own folder, which holds its setup.bash.
    while IFS= read -r -d : prefix; do
        if [[ -f $prefix/setup.bash ]]; then ros_setup=$prefix/setup.bash; fi
    done <<<"$AMENT_PREFIX_PATH:"
    [[ -n $ros_setup ]] || die "no setup.bash in any folder of AMENT_PREFIX_PATH: source your ROS 2 installation again"
else
    wheels=yes
    # Nothing of another environment may leak in: neither modules nor the libraries of other wheels.
    unset PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
    case $(uname -m) in
        x86_64) ;;
        *) die "there are no ROS 2 wheels for $(uname -m): install ROS 2 Jazzy or newer on this machine" \
               "(packages ros-jazzy-ros-base, ros-jazzy-vision-msgs, ros-jazzy-cv-bridge), then run make env again" ;;
    esac
fi
python=$(find_python "$distro")

# Two runs at once would write into the same folder.
exec 9<"$root/scripts/make_env.sh"
if command -v flock >/dev/null && ! flock -n 9; then
    say "another make env is at work here; waiting for it"
    flock 9
fi

version=
if [[ -n $python ]]; then version=$("$python" -c 'import sys; print(sys.version.split()[0])'); fi
stamp=$(environment_stamp "${distro:-wheels}" "$version" "$(uname -m)")
if [[ -n $python ]] && holds "$venv/.stamp" "$stamp" && [[ -x $venv/bin/python ]]; then
    fresh=no
else
    fresh=yes
    if [[ $check == yes ]]; then
        say "the environment is missing, incomplete or out of date: run make env"
        exit 1
    fi
    mkdir -p "$venv"
    : >"$log"
    if [[ -n $distro ]]; then
        say "ROS 2 $distro ($ros_setup)"
    else
        say "no ROS 2 installation found: taking ROS 2 Jazzy from Python wheels"
    fi
    libraries=$( (ldconfig -p || /sbin/ldconfig -p) 2>/dev/null | awk '{print $1}' | tr '\n' ' ')
    install_packages "$(missing_packages "$python" "$wheels")"
    if [[ -z $python ]]; then
        python=$(find_python "$distro")
        [[ -n $python ]] || die "no Python 3.11 or 3.12 found (ROS 2 wheels exist for these):" \
            "install one, or name it: make env PYTHON=/path/to/python3.12"
        install_packages "$(missing_packages "$python" "$wheels")"
        version=$("$python" -c 'import sys; print(sys.version.split()[0])')
        stamp=$(environment_stamp "${distro:-wheels}" "$version" "$(uname -m)")
    fi
    case $wheels:${version%.*} in
        no:3.1[0-9] | yes:3.11 | yes:3.12) ;;
        yes:*) die "$python is Python $version, but ROS 2 wheels exist for 3.11 and 3.12 only:" \
                   "name one of those: make env PYTHON=python3.12" ;;
        *) die "$python is Python $version, but 3.10 or newer is needed" ;;
    esac
    if [[ -n $distro ]]; then
        install_packages "$(missing_ros_packages "$python" "$distro" "$ros_needed")"
        optional=$(missing_ros_packages "$python" "$distro" "$ros_optional")
        if [[ -n $optional ]]; then
            say "not installed, but used where they are (rare image encodings, launch files): ${optional% }"
        fi
    fi

    free=$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1e6) }')
    if ((free < 8)) && [[ ! -f $venv/.stamp ]]; then
        die "the disk of $root has $free GB left, and the environment takes 8: free some space, then run make env again"
    fi

    # Another interpreter, another ROS, or stopped while pip was writing: start over. Otherwise pip brings the folder
    # up to date.
    if ! holds "$venv/.base" "$python $version ${distro:-wheels}" || [[ -f $venv/.unfinished ]] ||
        ! "$venv/bin/python" -c '' 2>/dev/null; then
        say "creating .venv with Python $version ($python)"
        site=()
        if [[ -n $distro ]]; then site=(--system-site-packages); fi
        run_child "$python" -m venv --clear "${site[@]}" "$venv" || die "$python could not make a virtual environment in $venv"
        # colcon must not look for packages in here: the wheels bring the package.xml of all of ROS.
        touch "$venv/COLCON_IGNORE"
        echo "$python $version ${distro:-wheels}" >"$venv/.base"
        : >"$log"
    fi
    rm -f "$venv/.stamp" "$venv/.stamp-package"
    touch "$venv/.unfinished"

    # The lock is complete (scripts/lock.py), so pip has nothing to resolve (--no-deps): older pips look beyond the pins
    # for a requirement with extras (coverage[toml]) and stop at the first newer release, whose hash the lock lacks.
    lock=requirements/lock.txt
    if [[ -n $distro ]]; then lock=requirements/lock-distro.txt; fi
    total=$(grep -c '==' "$root/$lock")
    say "installing $total Python packages, torch and Open3D among them" \
        "(about 3.5 GB to fetch and 7 GB on disk: 3 to 15 minutes)"
    if [[ $wheels == yes ]]; then
        pip_install "$total" --no-deps --require-hashes -r "$root/$lock"
        say "generating vision_msgs, which has no wheel (about 1 minute)"
        run_child "$venv/bin/python" "$root/scripts/build_interfaces.py" "$root/third_party/vision_msgs" \
            >>"$log" 2>&1 ||
            { tail -n 15 "$log" >&2; die "vision_msgs could not be generated: see the lines above and $log"; }
    else
        # The modules of the distribution are compiled against its NumPy; another major version would break them.
        numpy=$("$python" -c 'import numpy; print(numpy.__version__)')
        if [[ $(uname -m) == x86_64 && ${version%.*} == 3.12 && $numpy == 1.26.4 ]]; then
            pip_install "$total" --no-deps --require-hashes -r "$root/$lock"
        else
            say "no lock file for Python ${version%.*} with NumPy $numpy on $(uname -m):" \
                "pip resolves requirements/*.in with this NumPy"
            pip_install "$total" "numpy==$numpy" -r "$root/requirements/runtime.in" -r "$root/requirements/train.in" \
                -r "$root/requirements/test.in"
        fi
    fi
fi

package=$(package_stamp)
if [[ $fresh == yes ]] || ! holds "$venv/.stamp-package" "$package"; then
    if [[ $check == yes ]]; then
        say "the package's description or its list of data files has changed: run make env"
        exit 1
    fi
    say "installing ocdit_ros itself"
    install_package
    # With --no-deps nobody has asked yet whether all of it fits together. (A distribution's own Python packages seldom do.)
    if [[ $fresh == yes && $wheels == yes ]] &&
        ! broken=$("$venv/bin/python" -m pip --disable-pip-version-check check 2>&1); then
        say "WARNING: packages in .venv do not fit together (make clean, then make env, starts over):"
        printf '[env]   %s\n' "${broken//$'\n'/$'\n[env]   '}"
    fi
    if [[ $fresh == yes ]]; then
        say "compiling the modules that it imports (up to a minute)"
        compile_imports || say "WARNING: not all modules of ocdit_ros can be imported: $(tail -n 1 "$log")"
    fi
    write_setup "$distro"
    echo "$package" >"$venv/.stamp-package"
    echo "$stamp" >"$venv/.stamp"
    rm -f "$venv/.unfinished"
    say "ready after $((SECONDS - min_seconds)) s: source .venv/setup.bash"
else
    say "nothing to do"
fi
