"""`python -m bench`: a table on the screen, and the same numbers in bench/results/.

It takes a quarter of an hour on two CPU cores that do nothing else. Rounds take turns, so ratios hold on a busy
machine too; absolute numbers do not.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from bench import inpainting, loading, scaling, scoring, training, waits
from bench.measure import bf16_pays, device_name, matmul_peak, whole_peak
from bench.plans import CUDA, FULL, QUICK, Plan
from bench.rows import Figure, Ratio, describe, write_json

SECTIONS = ("training", "inpainting", "waits", "distance", "scoring", "loading", "scaling", "cost")
RESULTS = Path(__file__).parent / "results"
NO_BF16 = "this CPU has no bf16 instructions"
GPU_TRAINING = 0.40  # of the bf16 peak, at the best batch
GPU_SECONDS = 3.0  # for 747 images at T = 8


def main(words: list[str] | None = None) -> int:
    """Returns 1 where a result differs between the two sides, 2 for bad input; a goal that is missed is no failure."""
    args = _parser().parse_args(words)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    names = ", ".join(SECTIONS)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=names)
    parser.add_argument("--quick", action="store_true", help="small networks: seconds, to see that everything runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 = as torch decides")
    parser.add_argument("--data", type=Path, help="the lab's zip or folder, for loading; else files are made")
    parser.add_argument("--out", type=Path, help="the file to write; else one in bench/results, none with --quick")
    return parser


def run(args: Namespace) -> int:
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device} needs a GPU that torch can use, and there is none")
    if args.data and not args.data.exists():
        raise FileNotFoundError(f"--data {args.data} does not exist; it names the lab's zip or folder")
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = QUICK if args.quick else CUDA if device.type == "cuda" else FULL
    sections, peaks, seconds = {}, {}, {}
    about = {
        "plan": plan.name, "device": device_name(device), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, plan {plan.name}")
    for name in args.only:
        print(f"\n--- {name}", flush=True)
        sections[name], began = [], time.monotonic()
        # Timed again before each section: a peak is only seen while nothing else has the machine.
        if name != "waits":  # which are counted, not timed
            peaks = {amp: max(peak, peaks.get(amp, 0.0)) for amp, peak in peaks_of(device, plan).items()}
        for amp, peak in peaks.items():
            print(f"    product of two matrices, {'float32' if amp == 'off' else amp}: {peak / 1e9:.1f} GFLOP/s")
        for row in _rows(name, plan, device, peaks, args.data):
            print(describe(row), flush=True)
            sections[name].append(row)
        seconds[name] = round(time.monotonic() - began)
    if peaks:
        about["peak_gflops"] = {amp: round(peak / 1e9, 1) for amp, peak in peaks.items()}
    about |= {"seconds": seconds, "peak_memory_gb": round(whole_peak() / 2**30, 2)}
    out = args.out or (None if args.quick else RESULTS / f"{device.type}.json")
    print(f"\n{sum(seconds.values())} s; {about['peak_memory_gb']} GB at the most{f'; {out}' if out else ''}")
    if out:
        write_json(out, about, sections)
    ratios = [row for rows in sections.values() for row in rows if isinstance(row, Ratio)]
    return int(not all(row.parity.holds for row in ratios))


def peaks_of(device: torch.device, plan: Plan) -> dict[str, float]:
    """The measured peak for every precision that the hardware has."""
    peaks = {"off": matmul_peak(device, torch.float32, plan.peak_size)}
    if bf16_pays(device):
        peaks["bf16"] = matmul_peak(device, torch.bfloat16, plan.peak_size)
    return peaks


def _rows(name: str, plan: Plan, device: torch.device, peaks: dict[str, float], data: Path | None):
    """The rows of a section, in every precision that the hardware has where that makes a difference."""
    best = "bf16" if "bf16" in peaks else "off"
    if name in ("training", "inpainting"):
        section = {"training": training, "inpainting": inpainting}[name]
        for amp, peak in peaks.items():
            rows = section.run(plan, device, amp, peak)
            yield from rows
            if device.type == "cuda" and amp == best:
                yield from gpu_goals(name, rows)
        if best == "off":
            yield Figure(f"{name} in bf16", None, "x", NO_BF16)
    elif name == "waits":
        yield from waits.run(device)
    elif name == "distance":
        yield from scoring.distance(plan)
    elif name == "scoring":
        yield from scoring.end_to_end(plan, device, peaks["off"])
    elif name == "loading":
        yield from loading.run(plan, data)
    elif name == "scaling":
        yield from scaling.run(plan, device, best, peaks[best])
    else:
        yield from scaling.cost_model(plan, device, peaks[best])


def gpu_goals(name: str, rows: list[Ratio | Figure]) -> list[Figure]:
    """What a GPU should reach, in its own terms."""
    row = rows[0]
    if name == "training":
        reached = "reached" if row.share_of_peak >= GPU_TRAINING else "not reached"
        return [Figure("share of the peak", 100 * row.share_of_peak, "%", f"goal {GPU_TRAINING:.0%} {reached}")]
    seconds = 747 * row.times.lab5
    reached = "reached" if seconds < GPU_SECONDS else "not reached"
    return [Figure("747 images", seconds, "s", f"goal under {GPU_SECONDS:g} s {reached}")]


if __name__ == "__main__":
    sys.exit(main())
