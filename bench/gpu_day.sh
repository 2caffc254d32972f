#!/usr/bin/env bash
# All that is to be measured on a GPU, in order of worth, for a day on which one can be had for a quarter of an hour.
#
#     bash bench/gpu_day.sh                    everything, within ten minutes
#     bash bench/gpu_day.sh study pair         these parts alone
#     bash bench/gpu_day.sh --rehearse         on a CPU, at tiny size
#
# Results come to $OUT, else to bench/results/gpu-day, each as soon as it is there: summary.txt names the device and has a
# line for each part, log.txt what they printed. A part that takes too long is stopped, and the others still run. What is
# needed: torch, torchvision, numpy, scipy, pandas, matplotlib, opencv, pillow, tqdm, safetensors, jaxtyping, pytest.
#
#     tests    what would go wrong on a GPU alone
#     bench    training, inpainting, waits, scoring: times, and shares of the measured bf16 peak
#     lab      both stages at the lab's size for 2 and 3 minutes on toy cats, all 747 test images filled, scores
#     study    the claims of the five reports on 1,024 cats, with five trainings of each network
#     pair     a longer training of the committed pair, at most 16 MB
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/results/gpu-day}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
WHOLE=${WHOLE:-580}  # seconds

REHEARSE=
if [ "${1:-}" = --rehearse ]; then REHEARSE=1 && shift; fi
PARTS=${*:-tests bench lab study pair}
for part in $PARTS; do
    case $part in
        tests | bench | lab | study | pair) ;;
        *) echo "gpu_day.sh: there is no part '$part', but tests, bench, lab, study and pair" >&2 && exit 2 ;;
    esac
done

if [ -n "$REHEARSE" ]; then
    DEVICE=cpu
    BENCH=(--quick)
    LAB=(--profile smoke --seconds 3 3)
    STUDY=(--profile smoke --weights trained --seeds 2 --jobs 2 --set study.trainings=2 --set stage2.steps=12 --set data.test=32
        --set study.images=8)
    PAIR=(--profile smoke --seconds 3 3)
else
    DEVICE=cuda
    BENCH=()
    LAB=(--profile full --set data.test=747 --seconds 110 170)
    STUDY=(--profile quick --seeds 5 --jobs 8 --set study.trainings=5 --set stage2.steps=1500 --set data.test=1024
        --set study.images=256)
    PAIR=(--profile pretrained --set data.test=747 --set stage1.amp=bf16 --set stage2.amp=bf16 --set stage2.batch=128
        --seconds 60 90)
fi

mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "$REHEARSE" ]; then export LAB5_DATA="$OUT/data"; fi

run() { # SECONDS NAME COMMAND...: a part, stopped after so many seconds, or when there is no time left for all
    local limit=$1 name=$2 left=$((WHOLE - SECONDS))
    shift 2
    if [ $left -lt 15 ]; then echo "$name: no time left" | tee -a "$OUT/summary.txt" && return; fi
    [ $limit -gt $left ] && limit=$left
    local began=$SECONDS
    echo "=== $name: $*" >>"$OUT/log.txt"
    timeout --signal=INT --kill-after=10 $limit "$@" >>"$OUT/log.txt" 2>&1
    local code=$?
    [ $code = 124 ] || [ $code = 137 ] && code="$code, stopped after $limit s"
    echo "$name: $((SECONDS - began)) s, exit code $code" | tee -a "$OUT/summary.txt"
}

kept() { # NAME FILES...: into one archive, what there is of them
    local name=$1
    shift
    local there=()
    for file in "$@"; do [ -e "$file" ] && there+=("$(basename "$file")"); done
    [ ${#there[@]} -gt 0 ] && tar -czf "$OUT/$name.tar.gz" -C "$(dirname "$1")" "${there[@]}"
}

"$PYTHON" - "$DEVICE" >"$OUT/summary.txt" <<'END' || exit 2
import sys
import torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("gpu_day.sh: there is no GPU that torch can use; --rehearse goes without")
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "CPU, a rehearsal: no figure of this is a result"
print(f"{name}, torch {torch.__version__}")
END
cat "$OUT/summary.txt"
: >"$OUT/log.txt"

for part in $PARTS; do
    case $part in
        tests) # without conftest.py, which checks shapes with a package that may not be there
            LAB5_DATA="$OUT/data-of-tests" run 90 tests "$PYTHON" -m pytest --noconftest -q -p no:randomly -p no:xdist \
                -p no:cacheprovider tests/test_gpu.py tests/test_samplers.py tests/test_decoder.py
            rm -rf "$OUT/data-of-tests"
            ;;
        bench)
            run 150 bench "$PYTHON" -m bench --device $DEVICE "${BENCH[@]}" --out "$OUT/bench.json" \
                --only training inpainting waits scoring cost
            ;;
        lab) run 420 lab "$PYTHON" -m bench.day --device $DEVICE "${LAB[@]}" --out "$OUT/lab.json" ;;
        study)
            mkdir -p "$OUT/study"
            run 400 study "$PYTHON" -m lab5 study --grid claims "${STUDY[@]}" --set device=$DEVICE \
                --table "$OUT/study/study-claims.csv"
            kept study "$OUT"/study/*
            ;;
        pair)
            run 240 pair "$PYTHON" -m bench.day --device $DEVICE "${PAIR[@]}" --out "$OUT/pair.json" --keep "$OUT/pair"
            kept pair "$OUT"/pair/*
            ;;
    esac
done
tail -n 60 "$OUT/log.txt"
