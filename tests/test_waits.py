"""The real code on the stand-in GPU: nothing is left behind on the CPU, results are the CPU's, and waits are few."""

import copy
from dataclasses import replace

import pytest
import torch
from stubs import Blocks, cats, untrained_pair

from bench.standin import stand_in_gpu
from lab5.config import DecodeConfig, RefinerConfig
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import ATTRIBUTES, random_holes, render
from lab5.inpainting.fill import decode_holes, in_precision, inpaint_images, prepare
from lab5.inpainting.refiner import Refiner
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import MVTMObjective, VQGANObjective, validate
from lab5.profiles import INPAINTING, configure
from lab5.samplers import CODES, ORDERS
from lab5.scoring.classifier import AttributeObjective, EncoderFeatures, ToyFeatures
from lab5.scoring.scores import Scorer
from lab5.study.run import Plan, run_study
from lab5.study.tables import predictions
from lab5.trainer import fit
from lab5.training.critics import PatchCritic, PerceptualDistance
from lab5.training.refining import RefinerObjective
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

CONFIG = configure("smoke", device="cpu")
TINY_VQGAN = replace(CONFIG.vqgan, stem=4, encoder=((4,), (4,)), middle=(4,), decoder=((4,), (4,), (4,)))
TINY = replace(CONFIG.transformer, width=16, hidden=16, layers=1)
CLASSES = {name: len(values) for name, values in ATTRIBUTES.items()}
N = 3
IMAGES, HOLES = render(3, 16).images, random_holes(3, 5)


@pytest.fixture
def gpu():
    with stand_in_gpu() as gpu:
        yield gpu


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return cats(N, tmp_path_factory.mktemp("cats"))


def on_gpu(pair):
    """A pair of copies on the stand-in."""
    return pair._replace(
        tokenizer=Tokenizer(copy.deepcopy(pair.tokenizer.vqgan).to("cuda")),
        transformer=copy.deepcopy(pair.transformer).to("cuda"),
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- training ---------------------------------------------------------------------------------------------------------


def losses(gpu, build, objective, config, warm):
    """Those of the CPU and of the stand-in, and the waits and transfers of each step there but for the first few."""
    both, counts = [], []
    for device in ("cpu", "cuda"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, aim = build().to(device), objective(device)
        both.append([])
        gpu.clear()
        for step in fit(model, aim, config, seed=0):
            both[-1].append(step.loss)
            assert all(isinstance(value, float) for value in step.metrics.values())
            if device == "cuda" and step.step > warm:
                counts.append((gpu.waits.total(), gpu.transfers.total()))
            gpu.clear()
    return *both, counts


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_step_of_stage_one_waits_once(gpu, amp):
    """The first quantised one, which is the second here, looks for codes."""
    config = replace(CONFIG.stage1, steps=5, batch=4, warmup=1, amp=amp, autoencoder_share=0.2)

    def objective(device):
        perceptual = PerceptualDistance([ToyFeatures(CLASSES, 8).body[:3]])
        judges = {"perceptual": (0.1, perceptual), "adversarial": (0.1, PatchCritic())} if amp == "off" else {}
        return VQGANObjective(IMAGES[:8], TINY_VQGAN, config, seed=0, judges=judges)

    cpu, there, counts = losses(gpu, lambda: VQGAN(TINY_VQGAN), objective, config, warm=2)
    assert there == pytest.approx(cpu, rel=1e-4 if amp == "off" else 0.1)
    assert [waits for waits, _ in counts] == [1, 1, 1] and max(transfers for _, transfers in counts) <= 3


def test_a_step_of_the_refiner_waits_once(gpu):
    config = RefinerConfig(steps=4, batch=4, warmup=1)

    def objective(device):
        judges = {"perceptual": (0.1, PerceptualDistance([ToyFeatures(CLASSES, 8).body[:3]]))}
        return RefinerObjective(IMAGES[:8].flip(2), IMAGES[:8], random_holes(4, 8), config, 0, judges)

    cpu, there, counts = losses(gpu, lambda: Refiner((8, 8, 8)), objective, config, warm=1)
    assert there == pytest.approx(cpu, rel=1e-4)
    assert [waits for waits, _ in counts] == [1, 1, 1] and max(transfers for _, transfers in counts) <= 4


@pytest.mark.parametrize(("loss", "amp"), [("masked", "off"), ("all", "off"), ("masked", "bf16"), ("masked", "fp16")])
def test_a_step_of_stage_two_waits_once(gpu, amp, loss):
    """With hints, which the tokenizer reads from filled images on its own device; two batches in a step."""
    config = replace(CONFIG.stage2, steps=3, batch=4, accumulate=2, warmup=1, amp=amp, loss=loss)
    tokenizer = untrained_pair().tokenizer
    tokens = tokenizer.encode(IMAGES)

    def objective(device):
        here = Tokenizer(copy.deepcopy(tokenizer.vqgan).to(device))

        def hints(image, hole):
            return here.hints_there(fill_holes(IMAGES[image], HOLES[hole], "grey"), HOLES[hole])

        return MVTMObjective(tokens, config, 0, token_mask(HOLES), hints)

    model = lambda: BidirectionalTransformer(TINY)  # noqa: E731
    cpu, there, counts = losses(gpu, model, objective, config, warm=0)
    assert there == pytest.approx(cpu, rel=1e-5 if amp == "off" else 1e-2)
    assert [waits for waits, _ in counts] == [1, 1, 1]
    assert max(transfers for _, transfers in counts[1:]) <= 2 * 5 + 1  # in the first step, of one batch more


def test_a_step_of_the_classifier_waits_once(gpu):
    config = replace(CONFIG.classifier, steps=2, batch=4, warmup=1)

    def objective(device):
        return AttributeObjective(IMAGES[:8], {"mouth": torch.arange(8) % 3}, 4, seed=0)

    cpu, there, counts = losses(gpu, lambda: ToyFeatures({"mouth": 3}, 8), objective, config, warm=0)
    assert there == pytest.approx(cpu, rel=1e-4) and [waits for waits, _ in counts] == [1, 1]


def test_validation_is_the_cpus(gpu):
    tokens = torch.randint(64, (5, 256), generator=seeded())
    masked, hints = torch.rand(5, 256, generator=seeded(1)) < 0.5, torch.rand(5, 256, 48, generator=seeded(2))
    model = untrained_pair().transformer
    expected = validate(model, tokens, masked, hints, batch=2)
    there = validate(copy.deepcopy(model).to("cuda"), tokens, masked, hints, batch=2)
    assert there == pytest.approx(expected, rel=1e-4)


# --- tokens, decoding -------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_the_cpus_and_stays_in_float32(gpu, dataset):
    tokenizer = untrained_pair().tokenizer
    there = on_gpu(untrained_pair()).tokenizer
    filled = fill_holes(dataset.test, dataset.holes, "mean")
    tokens = tokenizer.encode(dataset.test)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(there.encode(dataset.test), tokens)
        assert torch.equal(there.decode(tokens), tokenizer.decode(tokens))
    torch.testing.assert_close(there.hints(filled, dataset.holes), tokenizer.hints(filled, dataset.holes))
    evidence = there.evidence(filled, dataset.holes, 1.0)
    torch.testing.assert_close(evidence.cpu(), tokenizer.evidence(filled, dataset.holes, 1.0), atol=1e-4, rtol=1e-4)


WAYS = {
    **{codes: {"codes": codes} for codes in CODES},
    **{order: {"order": order, "choice_temperature": 1.0} for order in ORDERS},
    "stopped": {"stop_at": 2},
    "entropy budget": {"budget": "entropy", "limit": 30.0},
    "threshold budget": {"budget": "threshold", "limit": 0.02},
    "re-masking": {"remask": 0.5},
    "rounds": {"rounds": 2},
    "ours": {"hints": True, "evidence": 1.0},
    "in bf16": {"amp": "bf16", "hints": True},
    "in fp16": {"amp": "fp16"},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_step_of_decoding_waits_once_and_moves_little(gpu, dataset, way):
    decoding, images, pair = DecodeConfig(**{"steps": 4} | WAYS[way]), dataset.masked_test, untrained_pair()
    there = on_gpu(pair)
    begun = prepare(there, images, dataset.holes, decoding)
    states = decode_holes(there, images, dataset.holes, decoding, 0, begun)
    last, counts = next(states), []
    gpu.clear()
    for state in states:
        counts.append((gpu.waits.total(), gpu.transfers.total()))
        last = state
        gpu.clear()
    assert max(waits for waits, _ in counts) <= 1 and max(transfers for _, transfers in counts) <= 3
    assert len(counts) >= 2 and not last.masked.any().item()
    *_, expected = decode_holes(pair, images, dataset.holes, decoding, 0)
    differ = (last.filled.cpu() != expected.filled).double().mean().item()
    assert differ <= (0.02 if decoding.amp == "off" else 0.5)


def test_the_copy_of_half_the_precision_is_made_once_for_each_state_of_a_transformer(gpu):
    model = on_gpu(untrained_pair()).transformer
    copied = in_precision(model, "bf16")
    assert in_precision(model, "bf16") is copied and copied.tok_emb.weight.dtype == torch.bfloat16
    assert in_precision(model, "off") is model and in_precision(model, "fp16") is not copied
    copied = in_precision(model, "bf16")
    with torch.no_grad():
        model.bias.add_(1)
    again = in_precision(model, "bf16")
    assert again is not copied and not torch.equal(again.bias.cpu(), copied.bias.cpu())


@pytest.mark.parametrize(("capability", "amp"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_on_a_gpu_holes_are_filled_in_the_precision_that_it_has(capability, amp):
    with stand_in_gpu(capability):
        assert configure("quick", device="cuda").decode.amp == configure("full").decode.amp == amp
        assert configure("quick", device="cuda", **{"decode.amp": "off"}).decode.amp == "off"
        assert configure("quick", device="cpu").decode.amp == "off"
    assert configure("full").decode.amp == "off"


# --- scoring, a study -------------------------------------------------------------------------------------------------


def test_scores_and_predictions_are_nearly_the_cpus(gpu, dataset):
    pair, classifier = untrained_pair(), ToyFeatures(CLASSES, 8)
    there = on_gpu(pair)
    pictures = inpaint_images(there, dataset.masked_test, dataset.holes, replace(INPAINTING, steps=2), 0)
    features = {
        "blocks": (Blocks(), Blocks()),
        "classifier": (classifier, copy.deepcopy(classifier).to("cuda")),
        "encoder": (EncoderFeatures(pair.tokenizer.vqgan), EncoderFeatures(there.tokenizer.vqgan)),
    }
    for ours, theirs in features.values():
        expected = Scorer(dataset, ours, tokenizer=pair.tokenizer)(pictures)
        scores = Scorer(dataset, theirs, tokenizer=there.tokenizer)(pictures)
        assert scores.hole_psnr_db == expected.hole_psnr_db and scores.token_accuracy == expected.token_accuracy
        assert (scores.score, scores.kid) == pytest.approx((expected.score, expected.kid), rel=1e-3, abs=1e-4)
    scorer = Scorer(dataset, Blocks())
    ours, theirs = (predictions(one, scorer, DecodeConfig(batch=2)) for one in (pair, there))
    assert theirs.bits_one_shot == pytest.approx(ours.bits_one_shot, rel=1e-3)


def test_a_study_gives_the_cpus_rows(gpu, dataset):
    scorer, pair = Scorer(dataset, Blocks()), untrained_pair()
    plans = [Plan(DecodeConfig(steps=2), stops=(1, 2)), Plan(replace(INPAINTING, steps=2, batch=2), stops=(2,))]
    ours, theirs = (list(run_study(one, scorer, plans, seeds=1)) for one in (pair, on_gpu(pair)))
    for expected, result in zip(ours, theirs, strict=True):
        for mine, row in zip(expected.rows, result.rows, strict=True):
            assert row["device"].startswith("cuda") and row["steps_used"] == mine["steps_used"]
            assert row["hole_psnr_db"] == pytest.approx(mine["hole_psnr_db"], abs=0.3)
