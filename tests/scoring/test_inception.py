"""The Inception network against pytorch-fid; its weights found, fetched, refused."""

import hashlib
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from lab5.scoring import inception as inception_module
from lab5.scoring.inception import InceptionFeatures

# --- Inception --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A random state dict of the FID network, with statistics that keep the activations in a sensible range."""
    inception = pytest.importorskip("pytorch_fid.inception")
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_7b, network.Mixed_7c = inception.FIDInceptionE_1(1280), inception.FIDInceptionE_2(2048)
    network.Mixed_5b = inception.FIDInceptionA(192, 32)
    network.Mixed_5c, network.Mixed_5d = inception.FIDInceptionA(256, 64), inception.FIDInceptionA(288, 64)
    for name, width in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}.items():
        setattr(network, name, inception.FIDInceptionC(768, width))
    generator = torch.Generator().manual_seed(23)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    file = tmp_path_factory.mktemp("inception") / inception_module.INCEPTION_FILE
    torch.save(network.state_dict(), file)
    return file


def test_inception_features_are_pytorch_fids(inception_file, monkeypatch):
    from pytorch_fid import inception

    state = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    theirs = inception.InceptionV3().eval()
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(inception_file))
    ours = InceptionFeatures()

    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(24))
    with torch.no_grad():
        expected = theirs(images)[0].flatten(1)
    features = ours.features(images, batch=2)
    assert features.shape == (3, 2048) and features.std(0).mean() > 1e-2 * expected.abs().mean() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)

    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert ours.weights_hash == digest
    assert "FID" not in ours.score_name and digest[:8] in ours.score_name  # other weights than the standard ones


def test_folding_a_normalisation_into_its_convolution_changes_nothing():
    from torchvision.models.inception import BasicConv2d

    generator = torch.Generator().manual_seed(3)
    network = torch.nn.Sequential(BasicConv2d(3, 8, kernel_size=3), BasicConv2d(8, 4, kernel_size=1)).eval()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    images = torch.randn(2, 3, 9, 9, generator=generator)
    with torch.no_grad():
        expected = network(images)
        folded = inception_module._fold(network).to(memory_format=torch.channels_last)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_missing_inception_weights_name_the_alternatives(tmp_path, monkeypatch):
    monkeypatch.delenv("LAB5_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError) as error:
        InceptionFeatures()
    for word in (inception_module.INCEPTION_FILE, "LAB5_INCEPTION_WEIGHTS", str(tmp_path / "hub")):
        assert word in str(error.value)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "absent.pth"))):
        InceptionFeatures(tmp_path / "absent.pth")


def test_other_files_are_refused_as_inception_weights(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match="does not hold the weights"):
        InceptionFeatures(file)


# --- its download ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty torch hub cache, and no other place where weights are named."""
    monkeypatch.delenv("LAB5_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves "other" whole and "half" cut short, and nothing else; `asked` are the paths that were asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            body = b"not these weights"
            if self.path not in ("/other", "/half"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:5] if self.path == "/half" else body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network(monkeypatch):
    """Only the file matters: nothing is built from it."""
    monkeypatch.setattr(inception_module, "_fid_inception", lambda file: torch.nn.Identity())


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_address_is_that_of_pytorch_fids_release():
    assert pytest.importorskip("pytorch_fid.inception").FID_WEIGHTS_URL == inception_module.INCEPTION_URL


@pytest.mark.parametrize("path, reason", [("other", "invalid hash"), ("half", "invalid hash"), ("absent", "404")])
def test_a_wrong_or_failed_download_leaves_nothing_and_names_the_alternatives(path, reason, hub, server, monkeypatch):
    monkeypatch.setattr(inception_module, "INCEPTION_URL", f"{server.url}/{path}")
    with pytest.raises(FileNotFoundError) as error:
        InceptionFeatures(download=True)
    assert server.asked == [f"/{path}"] and files_in(hub) == []
    for word in (server.url, reason, inception_module.INCEPTION_FILE, "LAB5_INCEPTION_WEIGHTS", str(hub)):
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_server_and_in_a_cache_that_cannot_be_written_it_is_the_same(hub, monkeypatch):
    monkeypatch.setattr(inception_module, "INCEPTION_URL", "http://127.0.0.1:1/nobody")
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(FileNotFoundError, match=r"failed with .*refused.* LAB5_INCEPTION_WEIGHTS"):
        InceptionFeatures(download=True)
    assert files_in(hub) == []
    (hub / "checkpoints").rmdir()
    hub.rmdir()
    hub.write_text("a file")
    with pytest.raises(FileNotFoundError, match="LAB5_INCEPTION_WEIGHTS"):
        InceptionFeatures(download=True)
    assert hub.read_text() == "a file"


def test_a_download_of_the_right_hash_is_called_fid_and_kept_in_the_cache(hub, server, no_network, monkeypatch):
    digest = hashlib.sha256(b"not these weights").hexdigest()
    monkeypatch.setattr(inception_module, "INCEPTION_HASH", digest[:8])
    monkeypatch.setattr(inception_module, "INCEPTION_URL", f"{server.url}/other")
    for download in (True, True, False):
        ours = InceptionFeatures(download=download)
        assert ours.weights_hash == digest and ours.score_name == f"FID (Inception {digest[:8]})"
    assert server.asked == ["/other"], "once"
    assert files_in(hub) == [hub / "checkpoints" / inception_module.INCEPTION_FILE]


def test_nothing_is_downloaded_unasked_or_in_place_of_a_file_that_was_named(hub, server, tmp_path, monkeypatch):
    monkeypatch.setattr(inception_module, "INCEPTION_URL", f"{server.url}/other")
    with pytest.raises(FileNotFoundError):
        InceptionFeatures()
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "argument.pth"))):
        InceptionFeatures(tmp_path / "argument.pth", download=True)
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "named.pth"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "named.pth"))):
        InceptionFeatures(download=True)
    assert server.asked == [] and files_in(tmp_path) == []


def test_an_argument_goes_before_the_environment_and_that_before_the_cache(hub, no_network, tmp_path, monkeypatch):
    cached = hub / "checkpoints" / inception_module.INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    files = {path: path.name.encode() for path in (tmp_path / "argument", tmp_path / "named", cached)}
    for path, content in files.items():
        path.write_bytes(content)

    def read(*arguments) -> str:
        digest = InceptionFeatures(*arguments, download=True).weights_hash
        return next(path.name for path, content in files.items() if hashlib.sha256(content).hexdigest() == digest)

    assert read() == cached.name
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "named"))
    assert read() == "named"
    assert read(tmp_path / "argument") == "argument"
