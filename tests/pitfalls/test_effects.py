"""Mistakes against scores, with a network that knows everything: what is seen is the mistake's own doing."""

import pandas as pd
import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from lab5.inpainting.pair import Pair
from lab5.pitfalls.effects import SCORED, early_is_better, scored
from lab5.scoring.scores import Scorer


class Knowing(torch.nn.Module):
    """Certain of the true tokens of these images."""

    def __init__(self, truth: torch.Tensor, mask_id: int):
        super().__init__()
        self.nothing, self.truth, self.mask_id = torch.nn.Parameter(torch.zeros(1)), truth, mask_id

    def forward(self, tokens):
        return 20.0 * torch.nn.functional.one_hot(self.truth, self.mask_id).float()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> pd.DataFrame:
    pair = untrained_pair()
    scorer = Scorer(cats(6, tmp_path_factory.mktemp("cache")), Blocks(), tokenizer=pair.tokenizer)
    knowing = Knowing(pair.tokenizer.encode(scorer.truth), pair.transformer.mask_id)
    return scored(Pair(pair.tokenizer, knowing.eval(), "stub"), scorer, steps=4, at=(1, 2, 4))


def test_the_package_is_right_at_every_stop_and_the_shrinking_mask_worse_in_the_end(table):
    rows = table.to_dict("records")
    assert [(row["decoding"], row["t"]) for row in rows] == [(name, t) for name in SCORED for t in (1, 2, 4)]
    assert {row["decoding"]: row["pitfall"] for row in rows} == {"ours": 0, "shrinking mask": 1, "known redrawn": 3}
    right = {name: [row["score"] for row in rows if row["decoding"] == name] for name in SCORED}
    assert right["ours"] == [right["ours"][0]] * 3
    shrinking = right["shrinking mask"]
    assert right["ours"][0] == pytest.approx(shrinking[0], rel=0.01), "one step hardly turns anything grey"
    assert shrinking[0] < shrinking[2]
    assert right["known redrawn"] != right["ours"]


def test_a_false_sweet_spot_is_told_by_its_number():
    rows = [("ours", 0, 1, 0.1), ("ours", 0, 2, 0.2), ("shrinking mask", 1, 1, 0.1), ("shrinking mask", 1, 2, 0.2),
            ("known redrawn", 3, 1, 0.3), ("known redrawn", 3, 2, 0.2)]  # fmt: skip
    assert early_is_better(pd.DataFrame(rows, columns=["decoding", "pitfall", "t", "kid"])) == {1: True, 3: False}
