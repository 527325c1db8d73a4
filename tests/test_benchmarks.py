"""The benchmarks' own arithmetic, on made-up times."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import models
import ratios
import report
import torch
from test_classifier_files import mutants

import fastconv
from fastconv.benchmarking.processes import alternate_processes
from fastconv.benchmarking.ratios import VARIANTS, medians

MADE_UP = "FASTCONV_MADE_UP"
SECONDS = {
    "torch NCHW": [0.4, 0.1, 0.4],
    "torch channels_last": [0.3, 0.2, 0.3],
    "fastconv NCHW": [0.2, 0.2, 0.2],
    "fastconv channels_last": [0.1, 0.1, 0.1],
}


def make_assertion() -> dict[str, Callable[[], object]]:
    import torch

    def run() -> None:
        assert torch.get_num_threads() == 1
        assert os.environ[MADE_UP] == "yes"

    return {"assertion": run}


def test_a_time_claim_compares_the_faster_layouts_round_by_round() -> None:
    claim = ratios.time_claim("step", SECONDS)
    assert claim["by_round"] == pytest.approx([3, 2, 3])
    assert claim["ratio"] == pytest.approx(3)
    assert claim["quartiles"] == pytest.approx((2.5, 3))
    assert claim["values"]["torch NCHW"] == pytest.approx(400)


def test_a_speed_up_claim_has_one_ratio_per_variant() -> None:
    before = {name: [2 * value for value in values] for name, values in SECONDS.items()}
    claim = ratios.speed_up_claim("threads", before, SECONDS)
    assert claim["values"] == pytest.approx(dict.fromkeys(SECONDS, 2))
    assert report.claim_row(claim) == ["threads", "x 2.00", "x 2.00", "x 2.00", "", "2.00 to 2.00"]


def test_the_report_has_a_table_of_operators_and_one_of_claims() -> None:
    info = {"cpu": "a CPU", "threads": 2, "level": "avx2", "preloaded": "", "torch": "1", "fastconv": "2"}
    info |= {"compiler": "g++", "rounds": 3}
    claims: list[Any] = [ratios.time_claim("step", SECONDS), {"what": "step, tcmalloc", "missing": "not found"}]
    seconds = medians(SECONDS)
    run = {
        "machine_info": {"fastconv": info},
        "benchmarks": [
            {"name": "test_relu[conv1]", "extra_info": {"seconds": seconds}},
            {"name": "test_step", "extra_info": {"seconds": seconds, "claims": claims}},
        ],
    }
    accuracy = {"claims": [{"what": "error", "ratio": 1.5}]}
    (_, operators, where), (headings, rows, _) = report.tables([run, accuracy])
    assert [row[0] for row in operators] == ["relu conv1", "geometric mean of the operators"]
    assert operators[0][-2:] == ["3.00", "2.00"]
    assert "a CPU, 2 threads, avx2" in where
    assert rows == [
        ["step", "400.00", "300.00", "100.00", "3.00", "2.50 to 3.00"],
        ["step, tcmalloc: not found", "", "", "", "", ""],
        ["error", "", "", "", "1.50", ""],
    ]
    assert all(len(row) == len(headings) for row in rows)


def test_the_report_of_a_damaged_file_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = medians(SECONDS)
    info = {"cpu": "a CPU", "threads": 2, "level": "avx2", "preloaded": "", "torch": "1", "fastconv": "2"}
    info |= {"compiler": "g++", "rounds": 3}
    claims = [ratios.time_claim("step", SECONDS), {"what": "step", "missing": "not found"}]
    extra = {"seconds": seconds, "claims": claims}
    sizes = dict.fromkeys(VARIANTS, 1)
    saved = {"bytes": sizes, "claims": [ratios.size_claim("saved", sizes)]}
    threads = {
        "seconds": {"torch NCHW, 1 threads": 1.0},
        "claims": [ratios.speed_up_claim("threads", SECONDS, SECONDS)],
    }
    benchmarks = [{"name": "a", "extra_info": found} for found in ({"seconds": seconds}, extra, saved, threads)]
    run = json.loads(json.dumps({"machine_info": {"fastconv": info}, "benchmarks": benchmarks}))
    path = tmp_path / "run.json"
    monkeypatch.setattr(sys, "argv", ["report.py", str(path)])
    path.write_text(json.dumps(run))
    report.main()
    refused = 0
    for name, mutant in mutants(run):
        path.write_text(json.dumps(mutant))
        capsys.readouterr()
        try:
            report.main()
        except SystemExit as ended:
            errors = capsys.readouterr().err
            refused += 1
            assert (ended.code, errors.count("\n")) == (2, 1), name  # noqa: PT017
            assert errors.startswith(f"report.py: {path}" if "benchmarks" in str(mutant) else "report.py: "), name
    assert refused > 200


def test_processes_have_their_own_threads_and_environment() -> None:
    seconds = alternate_processes(
        {"one": make_assertion}, rounds=3, calls=2, threads={"one": 1}, environment={MADE_UP: "yes"}
    )
    assert list(seconds) == ["assertion"]
    assert len(seconds["assertion"]["one"]) == 3
    assert all(value > 0 for value in seconds["assertion"]["one"])
    assert MADE_UP not in os.environ


def make_counters() -> dict[str, Callable[[], object]]:
    done = {"rare": 0, "frequent": 0}

    def count(name: str) -> None:
        done[name] += 1
        # Two untimed calls and the timed ones, in the discarded round and in one more.
        assert done[name] <= 2 * {"rare": 3, "frequent": 6}[name]
        time.sleep(1e-3)

    return {name: functools.partial(count, name) for name in done}


def test_functions_have_their_own_number_of_calls_and_processes_pause_after_their_turns() -> None:
    start = time.perf_counter()
    seconds = alternate_processes(
        {"one": make_counters}, rounds=1, calls={"rare": 1, "frequent": 4}, threads=1, pauses={"one": 0.3}
    )
    assert {name: len(by_variant["one"]) for name, by_variant in seconds.items()} == {"rare": 1, "frequent": 1}
    assert time.perf_counter() - start > 4 * 0.3


@pytest.mark.parametrize("name", models.NETWORKS)
def test_the_benchmarked_networks_give_the_same_results_after_convert(name: str) -> None:
    network = models.NETWORKS[name]
    model = network.make().double().eval()
    images = network.images(2).double()
    with torch.no_grad():
        expected = model(images)
        assert expected.shape == (2, 10)
        torch.testing.assert_close(fastconv.convert(model)(images), expected)
    lines = fastconv.conversion_report(model).lines
    assert any(line.becomes == ("converted" if name in ("LeNet-5", "ResNet-18") else "fused") for line in lines)


def test_the_networks_have_the_expected_numbers_of_parameters() -> None:
    sizes = {name: sum(p.numel() for p in network.make().parameters()) for name, network in models.NETWORKS.items()}
    assert sizes == {
        "LeNet-5": 61_706,
        "SimpleCNN": 121_930,
        "MnistCNN": 241_546,
        "ResNet-18": 11_173_962,
        "VGG-11": 9_225_610,
    }
