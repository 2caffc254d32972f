"""The Inception network against pytorch-fid; its weights found, fetched, refused."""

import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer
from threading import Thread

import pytest
import torch
from pytorch_fid import inception as pytorch_fid

from lab5.scoring import inception as inception_module
from lab5.scoring.inception import InceptionFeatures, fid_inception

# --- Inception --------------------------------------------------------------------------------------------------


def test_inception_features_are_pytorch_fids(tmp_path, monkeypatch):
    """With random weights and statistics that keep the activations in a sensible range."""
    generator, file = torch.Generator().manual_seed(23), tmp_path / "weights.pth"
    state = fid_inception().state_dict()
    for name, tensor in state.items():
        if tensor.dim() > 1:
            torch.nn.init.kaiming_normal_(tensor, generator=generator)
        elif tensor.is_floating_point():
            around = 1 if name.endswith(("bn.weight", "running_var")) else 0
            tensor.copy_(around + 0.2 * torch.rand(tensor.shape, generator=generator))
    torch.save(state, file)
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *args, **kwargs: state)
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(file))
    theirs, ours = pytorch_fid.InceptionV3().eval(), InceptionFeatures()

    images = torch.rand(3, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected = theirs(images)[0].flatten(1)
    features = ours.features(images, batch=2)
    assert features.shape == (3, 2048) and features.std(0).mean() > 1e-2 * expected.abs().mean() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules()), "all are folded"

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert ours.weights_hash == digest
    assert "FID" not in ours.score_name and digest[:8] in ours.score_name  # other weights than the standard ones


# --- its download ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """An empty torch hub cache in the user's home, whose name no message tells; no weights are named elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
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
    with TCPServer(("127.0.0.1", 0), Handler) as server:  # an HTTPServer would ask for the name of this machine
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
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
    assert pytorch_fid.FID_WEIGHTS_URL == inception_module.INCEPTION_URL


@pytest.mark.parametrize("path, reason", [("other", "invalid hash"), ("half", "invalid hash"), ("absent", "404")])
def test_a_wrong_or_failed_download_leaves_nothing_and_names_the_alternatives(path, reason, hub, server, monkeypatch):
    monkeypatch.setattr(inception_module, "INCEPTION_URL", f"{server.url}/{path}")
    with pytest.raises(FileNotFoundError) as error:
        InceptionFeatures(download=True)
    assert server.asked == [f"/{path}"] and files_in(hub) == []
    for word in (server.url, reason, inception_module.INCEPTION_FILE, "LAB5_INCEPTION_WEIGHTS", " ~/hub/checkpoints"):
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
    def missing(*arguments, **settings) -> str:
        with pytest.raises(FileNotFoundError) as error:
            InceptionFeatures(*arguments, **settings)
        return str(error.value)

    monkeypatch.setattr(inception_module, "INCEPTION_URL", f"{server.url}/other")
    unasked = missing()
    for word in (inception_module.INCEPTION_FILE, "LAB5_INCEPTION_WEIGHTS", " ~/hub/checkpoints"):
        assert word in unasked
    for settings in ({}, {"download": True}):
        assert "at ~/argument.pth" in missing(tmp_path / "argument.pth", **settings)
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "named.pth"))
    assert "at ~/named.pth" in missing(download=True)
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
