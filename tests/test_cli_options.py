"""Conventions of the command: quick help, completion, suggestions, --quiet, --json, --config, progress."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import COMMAND, ENVIRONMENT, ROOT, complaint, run

import fastconv
from fastconv.classifier import checkpoint, progress
from fastconv.classifier.cli import train_options
from fastconv.classifier.cli.main import _click_command, main
from fastconv.classifier.config import settle

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
COMMANDS = ["train", "evaluate", "predict", "plot", "report", "download", "export", "bench", "info"]
QUICK = ["train", "--limit", "200", "--epochs", "2", "--model", "conv4, pool"]
#: Packages that the help must not import. typer itself may import pydantic.
SLOW = ["torch", "numpy", "matplotlib", "pooch", "requests", "mlxtend", "PIL", "tqdm"]


def imports(arguments: list[str], **environment: str) -> list[str]:
    """Run the command in a new process, and return the slow packages that it has imported."""
    done = run([sys.executable, "-X", "importtime", *COMMAND[1:], *arguments], env=ENVIRONMENT | environment)
    assert "Traceback" not in done.stderr
    return imported_slowly(done.stderr)


def imported_slowly(report: str) -> list[str]:
    """The slow packages in the report of ``python -X importtime``."""
    modules = {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}
    assert "fastconv.startup" in modules
    return [name for name in SLOW if name in modules]


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--help"],
            ["-h"],
            [],
            ["--version"],
            ["-V"],
            ["trian"],
            ["train", "--recipe", "fats"],
            ["train", "--epoch"],
        ),
        *([command, "--help"] for command in COMMANDS),
    ],
    ids=" ".join,
)
def test_help_and_wrong_options_do_not_wait_for_torch(arguments: list[str]) -> None:
    assert imports(arguments) == []


def test_the_search_for_slow_imports_finds_them() -> None:
    assert "torch" in imports(["info"])


def completions(line: str) -> list[str]:
    """The words that bash offers after ``line``."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_FASTCONV_COMPLETE": "complete_bash"}
    done = run(COMMAND, env=ENVIRONMENT | words)
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_options_and_values() -> None:
    assert completions("fastconv tr") == ["train"]
    assert completions("fastconv train --epo") == ["--epochs"]
    assert completions("fastconv train --recipe a") == ["accurate"]
    assert completions("fastconv train --model si") == ["simple-cnn"]
    assert completions("fastconv export --format s") == ["safetensors"]
    assert completions("fastconv download fash") == ["fashion-mnist"]


def test_completion_does_not_wait_for_torch() -> None:
    words = {"COMP_WORDS": "fastconv train --re", "COMP_CWORD": "2", "_FASTCONV_COMPLETE": "complete_bash"}
    assert not {"torch", "numpy"} & set(imports([], **words))


INSTALLED_SCRIPT = """
import sys
from fastconv.__main__ import main
if __name__ == '__main__':
    sys.exit(main())
"""
#: A program that shows whether it is taken for the command: the command loads torch only if it has to compute.
OTHER_SCRIPT = "import sys, fastconv; print('torch' in sys.modules, sys.excepthook is sys.__excepthook__)"


def test_the_installed_script_is_the_command() -> None:
    Path("fastconv").write_text(INSTALLED_SCRIPT)
    done = run([sys.executable, "-X", "importtime", "fastconv", "--version"], env=ENVIRONMENT)
    assert done.stdout == f"fastconv {fastconv.__version__}\n"
    assert not imported_slowly(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fastconv"],
        ["fastconv", "--help"],
        ["other", "-m", "fastconv"],
        ["-m", "other", "-m", "fastconv"],
        ["-c", OTHER_SCRIPT, "-m", "fastconv"],
    ],
    ids=" ".join,
)
def test_a_program_of_the_same_name_is_not_the_command(arguments: list[str]) -> None:
    for name in ("fastconv", "other", "other.py"):
        Path(name).write_text(OTHER_SCRIPT)
    done = run([sys.executable, *arguments], env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("True True\n", "")


@pytest.mark.parametrize("options", [["-m", "fastconv"], ["-Bm", "fastconv"], ["-mfastconv"], ["-Bmfastconv"]])
def test_the_module_is_the_command(options: list[str]) -> None:
    done = run([sys.executable, "-X", "importtime", *options, "--version"], env=ENVIRONMENT)
    assert done.stdout == f"fastconv {fastconv.__version__}\n"
    assert not imported_slowly(done.stderr)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_no_internal_names(command: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*command.split(), "-h"]) == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    for wrong in ("<bool>", "{", "the recipe's", "[[", "None"):
        assert wrong not in shown


def test_the_help_of_train_has_numbers_and_groups(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for default in (
        "(5; fast: 1; accurate: 15)",
        "(0.001; fast: 0.008; accurate: 0.003)",
        "(0.2; fast: 0; accurate: 0)",
    ):
        assert f"[default: {default}]" in shown
    groups = [line.split(" ")[1] for line in shown.splitlines() if line.startswith("╭")]
    assert groups == ["Data", "Training", "Computation", "Run", "Output"]


def choices() -> list[tuple[str, str, list[str]]]:
    """Each option and argument with a fixed set of values: its command, its name, and the values."""
    found = []
    for name, command in _click_command().commands.items():
        for parameter in command.params:
            if "|" in (parameter.metavar or "") or parameter.metavar == "DATASET":
                values = (parameter.metavar or "").strip("<>").split("|")
                option = parameter.opts[0] if parameter.param_type_name == "option" else ""
                found.append((name, option, values if option else ["mnist", "fashion-mnist", "cifar10"]))
    return found


@pytest.mark.parametrize(("command", "option", "values"), choices())
def test_a_misspelt_value_gets_a_suggestion(command: str, option: str, values: list[str], capsys: Output) -> None:
    for value in values:
        misspelt = value[:-2] + value[:-3:-1]  # the last two letters are swapped
        error = complaint([command, *([option] if option else []), misspelt], capsys)
        assert f"{misspelt!r} is not one of {', '.join(values)}; did you mean '" in error
        assert error.count(". ") == 0  # one sentence


def test_the_test_of_misspelt_values_has_every_option() -> None:
    found = {option for _, option, _ in choices()}
    assert found == {
        *(
            "--dataset",
            "--augment",
            "--recipe",
            "--optimizer",
            "--schedule",
            "--loss",
            "--backend",
            "--device",
            "--dtype",
        ),
        *("--format", ""),
    }


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["trian"], "No such command 'trian'; did you mean 'train'? (see fastconv --help)"),
        (["train", "--epoch", "3"], "did you mean --epochs"),
        (["train", "--model", "mnist-cn"], "did you mean 'mnist-cnn'?"),
        (["train", "--model", "convv32"], "did you mean 'conv32'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_misspelt_words_get_a_suggestion(arguments: list[str], question: str, capsys: Output) -> None:
    assert question in complaint(arguments, capsys)


# --quiet and --json


@pytest.fixture
def trained(capsys: Output) -> str:
    """The folder of a short run, which is the last one."""
    assert main([*QUICK, "--quiet"]) == 0
    capsys.readouterr()
    return "runs/conv4-pool-mnist5k-1"


def printed(arguments: list[str], capsys: Output) -> tuple[str, str]:
    assert main(arguments) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    return output.out, output.err


def test_quiet_prints_the_result_alone(capsys: Output) -> None:
    output, errors = printed([*QUICK, "--quiet"], capsys)
    assert output.startswith("test accuracy ")
    assert (output.count("\n"), errors) == (1, "")
    assert printed(["evaluate", "-q"], capsys) == (output, "")
    table, errors = printed(["predict", "0", "-q"], capsys)
    assert (table.count("\n"), errors) == (2, "")
    for command in (["plot"], ["report"], ["export", "--format", "torch"]):
        assert printed([*command, "-q"], capsys) == ("", "")
    assert Path("runs/latest/report.html").exists()


def test_quiet_compare_prints_only_the_results(capsys: Output) -> None:
    output, _ = printed([*QUICK, "--quiet", "--compare"], capsys)
    assert [line.partition(" ")[0] for line in output.splitlines()] == ["test", "test", "fastconv"]


def test_train_prints_its_result_as_json(capsys: Output) -> None:
    output, errors = printed([*QUICK, "--json"], capsys)
    result = json.loads(output)
    assert result["run"] == "runs/conv4-pool-mnist5k-1"
    assert result["test_accuracy"] == checkpoint.load(Path(result["checkpoint"])).test_accuracy
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2]
    assert errors.count("epoch ") == 2
    record = json.loads(Path(result["run"], "history.json").read_text())
    assert {name: result[name] for name in record} == record


def test_evaluate_predict_and_info_print_their_results_as_json(trained: str, capsys: Output) -> None:
    evaluated = json.loads(printed(["evaluate", "--json"], capsys)[0])
    saved = checkpoint.load(Path(trained, "checkpoint.pt"))
    assert evaluated["test_accuracy"] == saved.test_accuracy
    assert (evaluated["checkpoint"], evaluated["dataset"], evaluated["images"]) == (
        f"{trained}/checkpoint.pt",
        "mnist5k",
        1000,
    )
    first, second = json.loads(printed(["predict", "3", str(ROOT / "examples/digit.png"), "--json"], capsys)[0])
    assert (first["image"], first["label"], second["label"]) == ("3", "3", None)
    assert 0.1 <= first["probability"] <= 1
    facts = json.loads(printed(["info", "--json"], capsys)[0])
    assert facts["fastconv"] == fastconv.__version__
    assert facts["threads"] >= 1


# --config


def test_train_reads_a_file_of_options_and_the_command_line_wins(capsys: Output) -> None:
    Path("settings.toml").write_text("recipe = 'fast'\nlimit = 200\nbatch-size = 50\nmodel = 'conv4, pool'\nlr = 1\n")
    Path("settings.json").write_text('{"epochs": 2, "limit": 100, "validation_split": 0.5, "output": "mine"}')
    assert main(["train", "--config", "settings.toml", "--lr", "0.01", "-q"]) == 0
    config = json.loads(Path("runs/latest/history.json").read_text())["config"]
    assert [config[name] for name in ("recipe", "limit", "batch_size", "lr", "epochs", "schedule")] == [
        *("fast", 200, 50, 0.01, 1, "one-cycle")
    ]
    assert main(["train", "--config", "settings.json", "-q"]) == 0
    config = json.loads(Path("mine/history.json").read_text())["config"]
    assert [config[name] for name in ("recipe", "epochs", "validation_split")] == ["reference", 2, 0.5]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "epoch = 3", "a.toml: unknown setting 'epoch'; did you mean 'epochs'?"),
        ("a.toml", "zzz = 3", "a.toml: unknown setting 'zzz'; known are dataset, data-dir, "),
        ("a.toml", "config = 'b.toml'", "a.toml: unknown setting 'config'"),
        ("a.toml", "compare = true", "a.toml: unknown setting 'compare'"),
        ("a.toml", "epochs = '3'", "a.toml: epochs: an integer is expected, not '3'"),
        ("a.toml", "epochs = true", "a.toml: epochs: an integer is expected, not True"),
        ("a.toml", "lr = inf", "a.toml: lr: a finite number is expected, not inf"),
        ("a.toml", "epochs = 0", "epochs must be at least 1, not 0"),
        (
            "a.toml",
            "recipe = 'fats'",
            "unknown recipe 'fats': choose one of reference, fast, accurate; did you",
        ),
        ("a.toml", "output = ''", "must not be empty"),
        ("a.toml", "epochs", "a.toml is not TOML: "),
        ("a.json", "{", "a.json is not JSON: "),
        ("a.json", "[3]", 'a.json must have names and values, such as {"epochs": 3}'),
        ("a.yaml", "epochs: 3", "--config reads TOML and JSON, not YAML: write a.yaml as .toml, with lines such as"),
        ("a.cfg", "epochs = 3", "--config must end in .toml or .json: a.cfg"),
        ("", "", "cannot read a.toml: No such file"),
    ],
)
def test_a_wrong_file_of_options_is_refused_in_one_line(name: str, content: str, message: str, capsys: Output) -> None:
    if name:
        Path(name).write_text(content)
    assert message in complaint(["train", "--config", name or "a.toml"], capsys)


def test_a_file_of_options_may_have_every_option_with_a_value() -> None:
    parameters = _click_command().commands["train"].params
    with_value = {parameter.name for parameter in parameters if not getattr(parameter, "is_flag", False)}
    assert set(train_options.FILE_TYPES) == with_value - {"config"}
    assert set(train_options.SETTINGS) == set(settle({})) < with_value


# Progress and the next step


def test_without_a_terminal_a_line_is_printed_every_30_s(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress._LINE_INTERVAL == 30
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # each step takes a second
        return now[0]

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=clock))
    assert main(["train", "--limit", "800", "--epochs", "1", "--batch-size", "8", "--model", "conv4, pool"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " images  loss " in line]
    assert len(lines) == 2  # 80 steps
    assert lines[0].startswith("epoch 1/1  ")
    assert " of 640 images  loss " in lines[0]
    assert lines[0].endswith(" s left in this epoch")


def test_train_ends_with_commands_that_work(capsys: Output) -> None:
    assert main([*QUICK, "--output", "a folder"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    commands = [shlex.split(line.removeprefix("next: ")) for line in lines]
    assert [command[:2] for command in commands] == [["fastconv", "report"], ["fastconv", "predict"]]
    for command in commands:
        assert main(command[1:]) == 0
    assert Path("a folder/report.html").exists()


# The set-up


@pytest.mark.skipif(not (ROOT / "csrc/logged.py").exists(), reason="tests run outside of the source tree")
@pytest.mark.parametrize("code", [0, 3])
def test_the_set_up_shows_the_steps_of_pip_and_ninja_and_keeps_the_rest_in_the_log(code: int) -> None:
    spec = importlib.util.spec_from_file_location("logged", ROOT / "csrc/logged.py")
    assert spec is not None
    assert spec.loader is not None
    logged: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(logged)
    assert logged.step("[3/27] c++ -MF /b/plan.o.d -c /s/plan.cpp -o /b/cpu/plan.o -isystem /t") == "[3/27] plan"
    assert logged.step("[27/27] c++ -shared -o /b/_C.so") == "[27/27]"
    assert logged.step("Collecting torch==2.13.0") == "Collecting torch==2.13.0"
    assert logged.step("SetuptoolsDeprecationWarning: something") is None
    output = ["SetuptoolsWarning: x", "[1/2] c++ -o a.o", "[2/2] c++ -o b.o"]
    program = f"print(*{output}, sep=chr(10)); raise SystemExit({code})"
    script = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT / 'csrc')!r}); import logged; logged.INTERVAL = 0\n"
        "from pathlib import Path\n"
        f"sys.exit(logged.run(Path('build/log'), 'compiling', [sys.executable, '-c', {program!r}]))"
    )
    done = run([sys.executable, "-c", script], env=os.environ)
    assert done.returncode == code
    assert Path("build/log").read_text() == "\n".join(output) + "\n"
    first, second, third, *rest = done.stdout.splitlines()
    assert [first, second, third] == ["compiling", "  [1/2] a", "  [2/2] b"]
    if code == 0:
        assert rest == ["  done in 0 s"]
    else:  # the whole output is shown
        assert "SetuptoolsWarning: x" in rest
        assert rest[-1] == "compiling: failed with exit code 3 (build/log)"
