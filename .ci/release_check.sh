#!/usr/bin/env bash
# make release-check: sdist and wheel of the last commit, tried in clean environments, from empty folders, with nothing
# else of this checkout.
# PYTHONS names the interpreters; one that is not there is named. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ..) say where PyTorch is from.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
git diff --quiet HEAD || echo "what is not committed is not in it"
git archive HEAD | tar -x -C "$work/source" # build/ and *.egg-info of a checkout would add files that are gone

absent=() checked=()
for python in ${PYTHONS:-python3.11 python3.12}; do
    if ! version=$("$python" -c 'import platform; print(platform.python_version())' 2> /dev/null); then
        absent+=("$python")
        continue
    fi
    here=$work/${#checked[@]}
    "$python" -m venv "$here/venv"
    bin=$here/venv/bin

    if [ ! -d "$work/dist" ]; then
        "$python" -m venv "$work/build"
        "$work/build/bin/pip" install --quiet --disable-pip-version-check build
        "$work/build/bin/python" -m build --outdir "$work/dist" "$work/source" > "$work/build.log" \
            || { tail -n 20 "$work/build.log" >&2; exit 1; } # the wheel is made from the sdist
        ls "$work/dist"
    fi
    echo "Python $version: installing the wheel and what it needs: a few minutes"
    "$bin/pip" install --quiet --disable-pip-version-check "$work"/dist/*.whl
    "$bin/pip" check

    mkdir "$here/model" "$here/empty"
    (cd "$here/model" && PYTHONPATH=$work/source/tests "$bin/python" -c '
from pathlib import Path
from hf_source import Source, converted
converted(Source(Path("source")), Path("hf"))') # a tiny one with random weights

    cd "$here/empty"
    "$bin/megavrc" --help > /dev/null
    "$bin/megavrc" generate --model "$here/model/hf" --prompt "a red square moves left" --out clips
    ls clips/*.mp4
    "$bin/megavrc" plan_run --gpu=h100 --config=video_1.2b > /dev/null # a configuration of the package
    "$bin/python" -c '
import importlib, pkgutil, sys
import megavrc

OPTIONAL = {"flash_attn", "triton", "fastapi", "pydantic", "lmms_eval"}  # of GPUs, and of extras
assert megavrc.__file__.startswith(sys.prefix), megavrc.__file__
names = [module.name for module in pkgutil.walk_packages(megavrc.__path__, "megavrc.")]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (package := (error.__cause__ or error).name) not in OPTIONAL:
            raise
        print(f"{name}: not without {package}")
print(f"{len(names)} modules imported, but for those named")'
    cd - > /dev/null
    checked+=("$version")
done

for python in "${absent[@]}"; do echo "NOT CHECKED: $python is not there"; done
[ ${#checked[@]} -gt 0 ] || exit 1
echo "checked with Python ${checked[*]}"
