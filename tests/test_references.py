"""Which errors of a reference skip a test, and which fail it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEST, LIBRARY = Path(__file__), Path("/lib/python3/site-packages")
WANTS = "The version of PEFT you are using is not compatible, please use a version that is greater than 0.22.0"


@pytest.fixture(scope="module")
def refusal():
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.refusal


def test_two_libraries_that_refuse_each_other(refusal):
    inside = LIBRARY / "transformers" / "integrations" / "peft.py"
    assert refusal(ValueError(WANTS), [TEST, inside]) == f"a reference refuses: {WANTS}"
    needs = ImportError("peft>=0.22.0 is required for a normal functioning of this module, but found peft==0.21.2.")
    assert refusal(needs, [TEST, LIBRARY / "diffusers" / "utils" / "versions.py"])


@pytest.mark.parametrize(
    ("error", "files"),
    [
        (
            ValueError(WANTS),
            [TEST, ROOT / "latent_diffusion" / "adapters" / "merge.py", LIBRARY / "peft" / "mapping.py"],
        ),
        (ValueError(WANTS), [TEST]),
        (ValueError(WANTS), [TEST, LIBRARY / "torch" / "nn.py"]),
        (ValueError("shapes (2, 4) and (3, 4) differ"), [TEST, LIBRARY / "peft" / "mapping.py"]),
        (AssertionError(WANTS), [TEST, LIBRARY / "peft" / "mapping.py"]),
    ],
    ids=["met by this package", "the test's own", "no reference", "another message", "another error"],
)
def test_everything_else_fails(refusal, error, files):
    assert refusal(error, files) is None
