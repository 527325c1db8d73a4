from __future__ import annotations

import os
import sys

import pytest
import torch
from forked import Python
from helpers import run

import fastconv
from fastconv import _C


def test_show_config_names_versions_isa_level_and_threads() -> None:
    text = fastconv.show_config()
    for part in (fastconv.__version__, torch.__version__, _C.cpu_capability(), f"threads {torch.get_num_threads()}"):
        assert part in text


@pytest.mark.parametrize("level", _C.cpu_capabilities())
def test_an_environment_variable_chooses_the_isa_level(level: str, python: Python) -> None:
    program = "import fastconv; print(fastconv._C.cpu_capability())"
    result = python(program, environment={"FASTCONV_CPU_CAPABILITY": level})
    assert result.stdout.strip() == level


def test_the_highest_isa_level_is_the_default(python: Python) -> None:
    code = "import fastconv; print(fastconv._C.cpu_capability() == fastconv._C.cpu_capabilities()[-1])"
    assert python(code, environment={"FASTCONV_CPU_CAPABILITY": ""}).stdout.strip() == "True"


def test_the_error_for_an_unknown_isa_level_lists_the_levels(python: Python) -> None:
    with pytest.raises(ValueError, match="'mmx' is not an ISA level of this machine: default"):
        _C.set_cpu_capability("mmx")
    result = python("import fastconv", environment={"FASTCONV_CPU_CAPABILITY": "mmx"})
    assert result.returncode != 0
    assert "'mmx' is not an ISA level of this machine: default" in result.stderr


def test_isa_levels_differ_only_by_rounding() -> None:
    x, w = torch.randn(3, 32, 13, 13), torch.randn(64, 32, 3, 3)
    before, results = _C.cpu_capability(), []
    for level in _C.cpu_capabilities():
        _C.set_cpu_capability(level)
        results.append(fastconv.functional.conv2d(x, w))
    _C.set_cpu_capability(before)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-4)


def test_a_torch_that_is_too_old_is_named_with_the_remedy(python: Python) -> None:
    result = python("import torch; torch.__version__ = '2.9.1'; import fastconv")
    assert result.stderr.strip().splitlines()[-1] == (
        "ImportError: fastconv needs torch >= 2.10, but found torch 2.9.1: pip install 'torch>=2.10'"
    )


def test_an_extension_that_is_not_built_is_named_with_the_remedy(python: Python) -> None:
    code = "import sys; sys.modules['fastconv._C'] = None; import fastconv"
    assert "extension is not built: pip install --no-build-isolation --editable ." in python(code).stderr


def test_results_do_not_depend_on_uninitialized_memory() -> None:
    """Run tests of values again while new memory is filled with huge numbers. Operators must write every element."""
    if sys.platform != "linux":
        pytest.skip("needs glibc, which reads MALLOC_PERTURB_")
    result = run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *_value_tests()],
        env={
            **os.environ,
            "MALLOC_PERTURB_": "128",
            "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000000:glibc.malloc.perturb=128",
        },
    )
    assert result.returncode == 0, result.stdout[-2000:]


def _value_tests() -> list[str]:
    folder = os.path.dirname(__file__)
    return [
        f"{folder}/test_conv2d.py::test_conv2d_in_float64_equals_pytorchs",
        f"{folder}/test_conv2d.py::test_gradients_are_right_where_most_of_grad_output_is_zero",
        f"{folder}/test_max_pool2d.py::test_the_gradient_goes_to_pytorchs_maxima",
    ]


def test_show_config_shows_its_lines_in_a_notebook() -> None:
    config = fastconv.show_config()
    assert repr(config) == str(config) == f"{config}"
    assert isinstance(config, str)
    assert repr(config).count("\n") == len(config.splitlines()) - 1 > 4
