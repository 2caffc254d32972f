"""What mistakes in decoding do to a score: the same networks and images, with the mistake and without.

Nothing in the package uses it but the notebooks: see `lab5.pitfalls`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lab5 import pitfalls_decoding as decoding
from lab5.pipeline import Pair
from lab5.scores import Scorer

SCORED: dict[str, decoding.Decoding] = {
    "ours": decoding.package,
    "shrinking mask (1)": decoding.shrinking_mask,
    "known redrawn (3)": decoding.nothing_restored,
}


@torch.no_grad()
def scored(
    pair: Pair, scorer: Scorer, *, steps: int = 12, at: Sequence[int] = (1, 3, 6, 12), seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each decoding of SCORED and each t: its scores, decoded as the lab does, with a cosine and argmax.

    The hole is encoded as grey, the network sees tokens alone, and pictures are the decoder's own.
    """
    tokens, unknown = pair.tokenizer.encode_holed(scorer.truth, scorer.holes, "grey")
    device = next(pair.transformer.parameters()).device
    rows = []
    for name, decode in SCORED.items():
        generator = torch.Generator().manual_seed(seed)
        given = tokens.to(device), unknown.to(device)
        shown = decode(pair.transformer, *given, generator=generator, schedule="cosine", steps=steps)
        for t in at:
            row = {"decoding": name, "steps": steps, "t": t, "seed": seed}
            rows.append(row | scorer(pair.tokenizer.decode(shown[t - 1].cpu()))._asdict())
    return rows


def early_is_better(rows: Sequence[dict[str, Any]]) -> dict[int, bool]:
    """Whether each mistake, by its number, makes stopping early look better than all the steps."""
    found = {}
    for name in SCORED:
        if "(" in name:
            kids = [row["kid"] for row in rows if row["decoding"] == name]
            found[int(name.split("(")[1][:-1])] = min(kids[:-1]) < kids[-1]
    return found
