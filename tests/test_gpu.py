"""What would go wrong on a GPU alone: tensors that are left behind on the CPU. Skipped where there is none."""

import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from bench import waits
from lab5.config import DecodeConfig
from lab5.profiles import configure
from lab5.scoring.classifier import ToyFeatures
from lab5.scoring.scores import Scorer
from lab5.study.tables import predictions
from lab5.transformer import BidirectionalTransformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_predictions_are_nearly_those_of_the_cpu(tmp_path):
    scorer, pair = Scorer(cats(6, tmp_path), Blocks()), untrained_pair()
    expected = predictions(pair, scorer, DecodeConfig(batch=4))
    pair.tokenizer.vqgan.cuda()
    on_gpu = predictions(pair._replace(transformer=pair.transformer.cuda()), scorer, DecodeConfig(batch=4))
    assert on_gpu.bits_one_shot == pytest.approx(expected.bits_one_shot, rel=1e-3)


def test_a_classifier_is_calibrated_on_images_of_the_cpu():
    network, images = ToyFeatures({"mouth": 3}, 8), torch.rand(20, 3, 64, 64)
    network.calibrate(images)
    mean = network.mean.clone()
    network.cuda().calibrate(images)
    torch.testing.assert_close(network.mean.cpu(), mean, rtol=1e-2, atol=1e-3)


def test_attention_is_looked_at_with_hints():
    config = configure("smoke", device="cuda").transformer
    model = BidirectionalTransformer(config).eval().cuda()
    tokens = torch.zeros(1, config.positions, dtype=torch.int64, device="cuda")
    hints = torch.zeros(1, config.positions, config.hints, device="cuda")
    assert model.attention_weights(tokens, hints).shape[-1] == config.positions


def test_a_step_of_training_and_one_of_decoding_wait_once():
    rows = waits.run(torch.device("cuda"))
    assert all(row.value <= 1 for row in rows), rows
