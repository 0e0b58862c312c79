#!/usr/bin/env bash
# Runs one rationalyst command on this machine, with an environment that fits it:
#
#     launch/worker.sh train --config llama3-8b-train --rationales FILE --model DIR --run_dir DIR
#
# The environment is made at the first call and again when pyproject.toml changes. rationalyst then takes this
# process over: signals reach it, and its exit status is that of the script. Settings, from the environment:
#
#     EXTRA  what is installed beside the package: tpu, gpu, cuda12, or nothing (EXTRA=); found here by default
#     VENV   folder of the environment; machines may share it
#     LIBTPU_INIT_ARGS  flags of libtpu; by default those of the chip (rationalyst_jax/lm/devices/chips.py)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv-launch}

find_extra() {
    local driver
    if driver=$(nvidia-smi 2>/dev/null); then
        if [[ $driver =~ CUDA\ ([A-Z]+\ )?Version:\ *([0-9]+) ]] && [ "${BASH_REMATCH[2]}" -ge 13 ]; then
            echo gpu
        else
            echo cuda12
        fi
    elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
        echo tpu
    fi
}

# The TPU's type, such as v6e-8: GKE says it in the environment, Cloud TPU's machines ask the metadata server.
accelerator() {
    local attributes="http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes"
    echo "${TPU_ACCELERATOR_TYPE:-$(curl -sf -m 10 -H 'Metadata-Flavor: Google' "$attributes/accelerator-type")}"
}

# With this machine's python, or where that is older than 3.11.5 with one that uv brings.
install() {
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' && python3 -m venv "$venv"; then
        "$venv/bin/python" -m pip install --quiet "$@"
    else
        python3 -m pip install --quiet --user uv
        python3 -m uv venv --quiet --allow-existing --python 3.12 "$venv"
        python3 -m uv pip install --quiet --python "$venv/bin/python" "$@"
    fi
}

extra=${EXTRA-$(find_extra)}
mkdir -p "$venv"
exec 9>"$venv/lock" # of the machines that share the folder, one installs
flock 9
installed=$venv/installed${extra:+-$extra}
if [ ! "$installed" -nt "$root/pyproject.toml" ]; then
    install -c "$root/constraints.txt" -e "$root${extra:+[$extra]}" >&2
    touch "$installed"
fi
exec 9>&-

if [ "$extra" = tpu ] && [ -z "${LIBTPU_INIT_ARGS+given}" ]; then
    flags_of='import sys; from rationalyst_jax.lm.devices.chips import libtpu_init_args; print(libtpu_init_args(*sys.argv[1:]))'
    LIBTPU_INIT_ARGS=$("$venv/bin/python" -c "$flags_of" "$(accelerator)")
    export LIBTPU_INIT_ARGS
fi
exec "$venv/bin/rationalyst" "$@"
