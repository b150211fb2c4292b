"""Checkpoints as people have them: every file here holds the same network, with one fingerprint."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from exporting import (
    INPUTS,
    Net,
    exported,
    patch_zip,
    refused,
    run_export,
    save,
    save_script,
)
from lstmserve_export.lstm.checkpoint import read_checkpoint

PUBLISHED = Path(__file__).parent / "fixtures" / "published"


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """A net and an Adam that has stepped, so that its state holds tensors."""
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.fc(net.lstm(torch.ones(2, 3, INPUTS))[0]).sum().backward()
    optimizer.step()
    return net, optimizer


def flat(path: Path) -> Path:
    """Writes torch.save(model.state_dict(), path)."""
    return save(trained()[0].state_dict(), path)


def nested(key: str) -> Callable[[Path], Path]:
    """Writes the state dict under a key, beside optimizer, epoch and best loss."""

    def write(path: Path) -> Path:
        net, optimizer = trained()
        rest = {"epoch": 3, "best_loss": torch.tensor(0.5), "args": {"lr": 1e-3}}
        content = {"optimizer": optimizer.state_dict(), key: net.state_dict(), **rest}
        return save(content, path)

    return write


def twice_nested(path: Path) -> Path:
    """Writes a dict in a dict, and an optimizer under an odd name."""
    net, optimizer = trained()
    return save({"ckpt": {"net": net.state_dict(), "adam": optimizer.state_dict()}}, path)


def lightning(path: Path) -> Path:
    """Writes an outline of what pytorch-lightning writes."""
    net, optimizer = trained()
    callbacks = {"EarlyStopping": {"best_score": torch.tensor(0.5)}}
    content = {
        "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": callbacks,
    }
    return save(content, path)


def prefixed(prefix: str) -> Callable[[Path], Path]:
    """Writes every name with the prefix of DataParallel or torch.compile."""

    def write(path: Path) -> Path:
        return save({prefix + k: v for k, v in trained()[0].state_dict().items()}, path)

    return write


def compiled_part(path: Path) -> Path:
    """Writes a network whose LSTM alone went through torch.compile."""
    tensors = trained()[0].state_dict()
    return save({k.replace("lstm.", "lstm._orig_mod."): v for k, v in tensors.items()}, path)


def parts(path: Path) -> Path:
    """Writes two state dicts side by side."""
    net, _ = trained()
    return save({"lstm": net.lstm.state_dict(), "fc": net.fc.state_dict()}, path)


def legacy(path: Path) -> Path:
    """Writes the format before torch 1.6."""
    return save(trained()[0].state_dict(), path, _use_new_zipfile_serialization=False)


def parameters(path: Path) -> Path:
    """Writes nn.Parameter in place of plain tensors."""
    return save(dict(trained()[0].named_parameters()), path)


def safetensors_file(path: Path) -> Path:
    """Writes safetensors content, whatever the file's name."""
    safetensors.torch.save_file(trained()[0].state_dict(), path)
    return path


def double(path: Path) -> Path:
    """Writes float32 values as float64."""
    return save({k: v.double() for k, v in trained()[0].state_dict().items()}, path)


def on_cuda(path: Path) -> Path:
    """Writes a file as saved on a GPU: the pickle gives cuda:0 as the storages' location."""
    patch_zip(flat(path), {"data.pkl": lambda data: data.replace(*CPU_TO_CUDA)})
    return path


def arrays() -> dict[str, np.ndarray]:
    """The state dict as arrays of numpy."""
    return {name: tensor.numpy() for name, tensor in trained()[0].state_dict().items()}


def npz(path: Path) -> Path:
    """Writes np.savez."""
    with path.open("wb") as file:
        np.savez(file, **arrays())
    return path


def packed_npz(path: Path) -> Path:
    """Writes np.savez_compressed, with big-endian numbers in Fortran's order."""
    with path.open("wb") as file:
        big = {name: np.asfortranarray(array.astype(">f4")) for name, array in arrays().items()}
        np.savez_compressed(file, **big)
    return path


def pickled(protocol: int) -> Callable[[Path], Path]:
    """Writes a pickled dict of arrays, beside what a script of training keeps."""

    def write(path: Path) -> Path:
        content = {
            "epoch": 3,
            "loss": np.float64(0.5),
            "weights": arrays(),
            "lr": [1e-3, (2, None)],
        }
        content["weights"]["fc.weight"] = np.asfortranarray(content["weights"]["fc.weight"])
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    return write


def torch_saved_arrays(path: Path) -> Path:
    """Writes a dict of arrays by torch.save, which torch itself does not load again."""
    return save(arrays(), path)


def with_numpy_loss(path: Path) -> Path:
    """Writes tensors beside a number of numpy, which torch itself does not load again."""
    return save({"model": trained()[0].state_dict(), "loss": np.float64(0.5)}, path)


def script(path: Path) -> Path:
    """Writes a TorchScript program."""
    return save_script(trained()[0], path)


def policy(path: Path) -> Path:
    """Writes the entries of a stable-baselines3 zip."""
    content = io.BytesIO()
    torch.save(trained()[0].state_dict(), content)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data", "_stable_baselines3_version", "policy.optimizer.pth"):
            archive.writestr(name, "{}")
        archive.writestr("policy.pth", content.getvalue())
    return path


CPU_TO_CUDA = b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"


FILES = {
    "flat": flat,
    "state_dict": nested("state_dict"),
    "model_state": nested("model_state"),
    "model": nested("model"),
    "twice nested": twice_nested,
    "lightning": lightning,
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("_orig_mod.module."),
    "compiled part": compiled_part,
    "parts": parts,
    "legacy": legacy,
    "parameters": parameters,
    "safetensors": safetensors_file,
    "float64": double,
    "saved on CUDA": on_cuda,
    "npz": npz,
    "npz, compressed": packed_npz,
    **{f"pickle of protocol {protocol}": pickled(protocol) for protocol in range(6)},
    "arrays by torch.save": torch_saved_arrays,
    "beside a number of numpy": with_numpy_loss,
    "TorchScript": script,
    "stable-baselines3": policy,
}


@pytest.fixture(scope="module")
def fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the plain state dict."""
    return exported(flat(tmp_path_factory.mktemp("flat") / "net.pt")).manifest.fingerprint


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_every_kind_of_file_gives_the_same_model(
    tmp_path: Path, fingerprint: str, write: Callable[[Path], Path]
) -> None:
    """No flag is needed, and not a bit of the weights changes."""
    assert exported(write(tmp_path / "net.pt")).manifest.fingerprint == fingerprint


def test_the_crafted_cuda_file_does_name_cuda(tmp_path: Path) -> None:
    """Without a map to the CPU, torch refuses the file here, so the case above tests what it
    says."""
    path = on_cuda(tmp_path / "net.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_converted_and_it_says_so(tmp_path: Path, dtype: torch.dtype) -> None:
    """The summary and the manifest say that the weights were converted."""
    tensors = {k: v.to(dtype) for k, v in trained()[0].state_dict().items()}
    path = save(tensors, tmp_path / "net.pt")
    name = str(dtype).removeprefix("torch.")
    note = f"weights are {name} in the file, served as float32"
    assert note in run_export(path, "--dry-run").stdout
    assert exported(path).manifest.notes == (note,)


def test_where_the_weights_lay_is_a_note(tmp_path: Path) -> None:
    """A note says which dict of the file was taken."""
    path = nested("model_state")(tmp_path / "net.pt")
    assert exported(path).manifest.notes == ("the weights lie in 'model_state' of the file",)


def test_two_sets_of_weights_are_two_candidates(tmp_path: Path) -> None:
    """A running average beside the model is chosen by its dict's name."""
    net = Net()
    content = {"model": net.state_dict(), "ema": {k: v / 2 for k, v in net.state_dict().items()}}
    path = save(content, tmp_path / "net.pt")
    assert "model.lstm (LSTM 5 -> 8), ema.lstm (LSTM 5 -> 8)" in refused(path)
    files = exported(path, "--lstm", "ema.lstm", "--head", "ema.fc", "--drop", "model")
    half = (net.fc.weight.T / 2).detach().numpy()
    assert (files.network.weights["head.0.weight"] == half).all()
    assert "not exported: model.lstm.weight_ih_l0" in files.manifest.notes[0]


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    """Each dict of the file is read once."""
    content: dict[str, object] = dict(nn.LSTM(2, 3).state_dict())
    content["me"] = content
    path = save(content, tmp_path / "net.pt")
    assert exported(path).manifest.lstm.hidden_size == 3


class Policy(Net):
    """A network with an activation that is a module, and a tensor that is neither a parameter nor a
    buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(self.fc, nn.ELU(), nn.Linear(3, 2))
        self.fc = nn.Identity()
        self.gain = torch.full((1, 2), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y of every time step."""
        y: torch.Tensor = self.head(self.lstm(x)[0]) * self.gain
        return y


def test_the_activations_of_a_program_are_named(tmp_path: Path) -> None:
    """A program knows its activations, and the refusal and the summary name them."""
    path = save_script(Policy(), tmp_path / "net.pt")
    assert "head.1 (ELU) may stand among them" in refused(path)
    notes = exported(path, "--head", "head.0,elu,head.2", "--drop", "gain").manifest.notes
    assert "the program has head.1 (ELU); the model has only those that --head names" in notes


def test_a_tensor_in_the_code_of_a_program_is_not_left_out_in_silence(tmp_path: Path) -> None:
    """A traced program has such tensors as constants of its code."""
    path, net = tmp_path / "net.pt", Policy().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its files are about
        torch.jit.trace(net, torch.zeros(2, 1, INPUTS)).save(str(path))
    tensors = read_checkpoint(path).tensors
    assert set(tensors) == {*net.state_dict(), "constants.0"}
    assert torch.equal(tensors["constants.0"], net.gain)
    flags = ("--head", "head.0,elu,head.2")
    assert "would be left out: constants.0" in refused(path, *flags)


def test_a_program_is_read_as_torch_reads_it() -> None:
    """Names, shapes and values are those of torch.jit.load(...).state_dict()."""
    programs = [file for file in PUBLISHED.glob("*/*.pt") if is_script(file)]
    assert len(programs) == 3
    for file in programs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = torch.jit.load(file, map_location="cpu").state_dict()
        found = read_checkpoint(file).tensors
        assert set(found) == set(expected), file
        assert all(torch.equal(found[name], each) for name, each in expected.items())


def is_script(path: Path) -> bool:
    """Whether the file is a TorchScript program."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def test_an_archive_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    """Its numbers would be other numbers here."""
    path = script(tmp_path / "net.pt")
    with zipfile.ZipFile(path) as archive:
        order = [name for name in archive.namelist() if name.endswith("byteorder")]
        (root,) = {name.partition("/")[0] for name in archive.namelist()}
    if order:
        patch_zip(path, {"byteorder": lambda content: b"big"})
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{root}/byteorder", "big")
    assert "is of a big-endian machine" in refused(path)
