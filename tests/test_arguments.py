"""Whatever a caller passes: the call ends well, or in one SwarmKVError; and the process lives."""

import subprocess
import sys

import pytest
from conftest import ROOT, often

import swarmkv_lab as lab


def random_calls(seed: int, n_calls: int) -> None:
    script = ROOT / "tests" / "random_calls.py"
    done = subprocess.run(
        [sys.executable, script, str(seed), str(n_calls)], capture_output=True, text=True, cwd=ROOT, timeout=1800
    )
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, f"{done.stdout[-3000:]}\nthe last call: {last}"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_random_calls(seed):
    """Two thousand, a tenth in make test."""
    random_calls(seed, often(200))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lab.load_document(3), r"load_document: name is 3 \(int\), and should be str \| pathlib.Path"),
        (lambda: lab.kl_divergence("x", "y"), r"kl_divergence: p_logits is 'x' \(str\), and should be ndarray"),
        (lambda: lab.KVSnapshot.from_bytes("text"), r"from_bytes: data is 'text' \(str\), and should be bytes"),
        (lambda: lab.load_model(n_gpu_layers=2**40), r"n_gpu_layers=1099511627776: it must be a whole number from -1"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(call, message):
    with pytest.raises(lab.SwarmKVError, match=message):
        call()


def test_an_error_that_no_argument_explains_stays_what_it_was(twin, document):
    def broken(run):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        lab.fan_out(twin, document, [[1]], callback=broken)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nme'"):
        lab.load_document(nme="dossier")


@pytest.mark.parametrize("temperature", [1e-40, 1e-5, 1e5, 1e39, 10**400, float("nan"), float("inf"), -1, 1j, "hot"])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(lab.SwarmKVError, match="temperature="):
        lab.Sampling(temperature=temperature)
