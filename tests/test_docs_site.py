"""docs/check.py finds the faults of a built site, and benchmarks/publish.py keeps the figures of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "check.py").exists(), reason="the documentation is not here")

PAGE = '<html lang="en"><head>{head}</head><body id="top">{body}</body></html>'


FAULTS = [
    ("", '<a href="gone.html">', "leads nowhere: gone.html"),
    ("", '<a href="other.html#gone">', "no such place: other.html#gone"),
    ("", '<a href="#gone">', "no such place: #gone"),
    ("", '<a href="../outside.html">', "leads out of the site: ../outside.html"),
    ("", '<img src="picture.png">', "no alt text: picture.png"),
    ("", '<script src="https://cdn.example/x.js"></script>', "needs the network: https://cdn.example/x.js"),
    ('<link rel="stylesheet" href="//fonts.example/a.css">', "", "needs the network: //fonts.example/a.css"),
]


def test_the_faults_of_a_page_are_found(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "other.html").write_text(PAGE.format(head="", body='<a href="index.html#top">'))
    (site / "index.html").write_text(PAGE.format(head="", body=""))
    (site / "picture.png").touch()
    for number, (head, body, _) in enumerate(FAULTS):
        (site / f"{number}.html").write_text(PAGE.format(head=head, body=body))
    result = check(site)
    faults = [line for line in result.stdout.splitlines() if ".html: " in line]
    assert sorted(faults) == [f"{number}.html: {message}" for number, (_, _, message) in enumerate(FAULTS)]
    assert result.returncode == 1
    assert "fastconv.convert is not in the reference" in result.stdout  # the small site has none


def test_english_labels_of_a_chinese_page_are_found(tmp_path: Path) -> None:
    chinese = PAGE.replace('lang="en"', 'lang="zh-CN"')
    label = '<button aria-label="Toggle navigation of 教程">'
    (tmp_path / "english.html").write_text(PAGE.format(head="", body=f"<span>Back to top</span>{label}"))
    (tmp_path / "old.html").write_text(chinese.format(head="", body=f"<span>Back to top</span>{label}"))
    (tmp_path / "new.html").write_text(chinese.format(head="", body="<span>回到顶部</span>"))
    faults = [line for line in check(tmp_path).stdout.splitlines() if ".html: " in line]
    labels = ("Back to top", "Toggle navigation of 教程")
    assert faults == [f"old.html: not translated: {text}" for text in labels]


def check(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "docs" / "check.py"), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_publish_keeps_the_figures_and_names_the_processor(tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    seconds = dict.fromkeys(
        ("torch NCHW", "torch channels_last", "fastconv NCHW", "fastconv channels_last"), 0.00123456
    )
    claim = {
        "what": "step",
        "values": {"torch NCHW": 1.23456789},
        "by_round": [2.0],
        "ratio": 2.0,
        "quartiles": [1.0, 3.0],
    }
    machine = {"cpu": "AMD EPYC", "threads": 2, "level": "avx2", "preloaded": "", "compiler": "g++", "rounds": 3}
    machine |= {"torch": "2.13.0", "fastconv": "0.1.0"}
    benchmarks = [{"name": "a", "extra_info": {"seconds": seconds}}, {"name": "b", "extra_info": {"claims": [claim]}}]
    run = {"machine_info": {"node": "somewhere", "fastconv": machine}, "benchmarks": benchmarks}
    (tmp_path / "run.json").write_text(json.dumps(run))
    output = tmp_path / "out.json"
    options = ["--cpu", "AMD EPYC (Zen 9)", "--date", "2030-01-01", "--output", str(output)]
    command = [sys.executable, str(ROOT / "benchmarks" / "publish.py"), str(tmp_path / "run.json"), *options]
    subprocess.run(command, check=True, cwd=ROOT)
    (found,) = json.loads(output.read_text())["runs"]
    assert found["machine_info"] == {"fastconv": {**machine, "cpu": "AMD EPYC (Zen 9)"}}
    times, claims = (benchmark["extra_info"] for benchmark in found["benchmarks"])
    assert set(times["seconds"].values()) == {0.0012346}
    assert claims["claims"] == [
        {"what": "step", "values": {"torch NCHW": 1.2346}, "ratio": 2.0, "quartiles": [1.0, 3.0]}
    ]
