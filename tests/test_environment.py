"""Environment variables: every value is accepted, or refused at import with one clear line. None causes a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import Python

import fastconv
from fastconv import _C, environment

DEFAULTS = {
    "FASTCONV_CPU_CAPABILITY": "",
    "FASTCONV_ALGORITHM": "auto",
    "FASTCONV_WINOGRAD": "3",
    "FASTCONV_CACHE_MB": "512",
    "FASTCONV_KEEP_MB": "1024",
    "FASTCONV_TENSOR_CORES": "0",
    "FASTCONV_TUNING": "",
    "FASTCONV_BENCH_ROUNDS": "60",
}
LEVELS = _C.cpu_capabilities()

# variable, value, the setting
ACCEPTED = [
    *((name, "", default) for name, default in DEFAULTS.items()),
    *((name, " \t", default) for name, default in DEFAULTS.items()),
    *(("FASTCONV_CPU_CAPABILITY", level, level) for level in LEVELS),
    ("FASTCONV_CPU_CAPABILITY", " default\n", "default"),
    *(("FASTCONV_WINOGRAD", side, side) for side in "0234"),
    ("FASTCONV_CACHE_MB", "0", "0"),
    ("FASTCONV_CACHE_MB", "1", "1"),
    ("FASTCONV_CACHE_MB", "000256", "256"),
    ("FASTCONV_CACHE_MB", "8796093022207", "8796093022207"),  # the most MB whose bytes fit in 63 bits
    ("FASTCONV_CACHE_MB", "8796093022208", "unlimited"),
    ("FASTCONV_CACHE_MB", "99999999999999999999", "unlimited"),
    ("FASTCONV_CACHE_MB", "9" * 10_000, "unlimited"),
    ("FASTCONV_KEEP_MB", "0", "0"),
    ("FASTCONV_KEEP_MB", " 300", "300"),
    ("FASTCONV_KEEP_MB", "99999999999999999999", "unlimited"),
    ("FASTCONV_TENSOR_CORES", "0", "0"),
    ("FASTCONV_TENSOR_CORES", " 1 ", "1"),
    ("FASTCONV_BENCH_ROUNDS", "7", "7"),
    ("FASTCONV_BENCH_ROUNDS", "99999999999999999999", "1000000"),
    ("FASTCONV_BENCH_ROUNDS", "9" * 10_000, "1000000"),
]

NUMBER = ["-1", "-0", "+5", "abc", "1.5", "1e3", "0x10", "256MB", "1 2", "٣", "nan", "-99999999999999999999"]
# variable, value, the message after the value
REFUSED = [
    *(("FASTCONV_CACHE_MB", value, "is not a whole number of MB, 0 or more") for value in NUMBER),
    *(("FASTCONV_KEEP_MB", value, "is not a whole number of MB, 0 or more") for value in NUMBER),
    *(("FASTCONV_BENCH_ROUNDS", value, "is not a whole number, 1 or more") for value in [*NUMBER, "0"]),
    *(
        ("FASTCONV_WINOGRAD", value, "is not one of 0, 2, 3, 4")
        for value in [*NUMBER, "1", "5", "on", "33", "99999999999999999999"]
    ),
    *(("FASTCONV_TENSOR_CORES", value, "is not one of 0, 1") for value in ["2", "01", "on", "true", "-1"]),
    *(
        ("FASTCONV_CPU_CAPABILITY", value, "is not an ISA level of this machine: default")
        for value in ["mmx", "AVX2", "avx", "default,avx2", "-1", "99999999999999999999", "a\nb", "x" * 1000]
    ),
]

# Prints a line of JSON.
PROGRAM = """
import json, torch
torch.set_num_threads(1)
try:
    import fastconv
    x, w = torch.randn(1, 16, 20, 20), torch.randn(24, 16, 3, 3)
    for _ in range(3):
        y = fastconv.functional.conv2d(x, w)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w), rtol=1e-3, atol=1e-3)
    print(json.dumps({"settings": fastconv.environment.settings(), "config": fastconv.show_config()}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


def outcomes(cases: list[dict[str, str]], python: Python, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Import fastconv in a process for each case, with its variables."""
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    found = [python(PROGRAM, environment=variables) for variables in cases]
    return [json.loads(done.stdout) for done in found]


def test_accepted_values_and_too_large_numbers_set_the_expected_setting(
    python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process has the first value of each variable, and so on."""
    values = {name: [case[1:] for case in ACCEPTED if case[0] == name] for name in DEFAULTS}
    rows = [
        {name: found[number] for name, found in values.items() if number < len(found)}
        for number in range(max(map(len, values.values())))
    ]
    assert sum(map(len, rows)) == len(ACCEPTED)
    cases = [{name: value for name, (value, _) in row.items()} for row in rows]
    for row, outcome in zip(rows, outcomes(cases, python, monkeypatch), strict=True):
        settings = outcome.get("settings", outcome)
        expected = {name: setting for name, (_, setting) in row.items()}
        assert {name: settings.get(name) for name in DEFAULTS} == DEFAULTS | expected, str(row)[:500]
        assert all(f"{name}={setting or 'unset'}" in outcome["config"] for name, setting in expected.items())


def test_other_values_are_refused_at_import_in_one_line_that_says_what_is_accepted(
    python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcomes([{name: value} for name, value, _ in REFUSED], python, monkeypatch)
    for (name, value, expected), outcome in zip(REFUSED, found, strict=True):
        assert outcome.get("error") == "ValueError", (name, value[:60], outcome)
        text = outcome["text"]
        assert text.startswith(f"fastconv: {name}: '")
        assert expected in text
        assert "empty or unset: " in text
        assert len(text.splitlines()) == 1
        assert len(text) < 300
        if value.isascii() and value.isprintable() and len(value) < 60:
            assert f"'{value}'" in text


def test_a_value_that_is_not_utf_8_is_refused_in_the_same_way() -> None:
    variables = {**os.environb, b"FASTCONV_CACHE_MB": b"\xff\xfe"}
    result = subprocess.run([sys.executable, "-c", "import fastconv"], env=variables, capture_output=True, check=False)
    assert result.returncode == 1
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith(r"ValueError: fastconv: FASTCONV_CACHE_MB: '\xff\xfe' is not a whole number of MB")


def test_a_refused_value_can_be_corrected_in_the_same_process(python: Python) -> None:
    program = """
import os
for value in ("garbage", "-1"):
    os.environ["FASTCONV_CACHE_MB"] = value
    try:
        import fastconv
    except ValueError as error:
        print(error)
os.environ["FASTCONV_CACHE_MB"] = "12"
import fastconv
print(fastconv.environment.settings()["FASTCONV_CACHE_MB"])
"""
    first, second, third = python(program).stdout.splitlines()
    assert "'garbage'" in first
    assert "'-1'" in second
    assert third == "12"


def test_fastconv_data_may_be_any_path_but_not_that_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastconv.classifier.data.dataset import DataError
    from fastconv.classifier.data.places import default_folders

    for value, folder in [("", None), ("some folder", Path("some folder")), ("-1", Path("-1"))]:
        monkeypatch.setenv("FASTCONV_DATA", value)
        assert environment.data_folder() == folder
        assert (folder in default_folders()) is (folder is not None)
    monkeypatch.delenv("FASTCONV_DATA")
    assert environment.data_folder() is None
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("FASTCONV_DATA", str(file))
    with pytest.raises(DataError, match=r"FASTCONV_DATA: .*file is not a folder"):
        default_folders()


def test_every_variable_is_documented_and_read_in_one_place() -> None:
    root = Path(fastconv.__file__).parents[1]
    table = (root / "docs" / "reference" / "environment.md").read_text()
    for name in environment.settings():
        assert f"| `{name}` |" in table
    for folder, pattern, reader in (("csrc", "*.cpp", "environment.cpp"), ("csrc", "*.h", "environment.cpp")):
        for path in (root / folder).rglob(pattern):
            assert path.name == reader or "getenv" not in path.read_text(), path
    for path in [*(root / "fastconv").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]:
        text = path.read_text()
        assert path.name == "environment.py" or not any(
            f'{reading}"FASTCONV_' in text for reading in ("environ.get(", "getenv(", "environ[")
        ), path
