"""The course: both languages have the same code, formulas and headings, and each exercise has a solution."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH, CHINESE = DOCS / "course", DOCS / "zh" / "course"
PAGES = sorted(path.name for path in ENGLISH.glob("*.md"))
CHAPTERS = [name for name in PAGES if name != "index.md"]

FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
CELL_HEADER = re.compile(r"\A(?:---\n.*?^---\n|(?::[a-z-]+:[^\n]*\n)+)", re.MULTILINE | re.DOTALL)
DISPLAYED = re.compile(r"^\$\$\n(.*?)^\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$])\$([^$\n]+)\$")
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
CHINESE_LETTER = re.compile(r"[\u4e00-\u9fff]")

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not here")


def text_of(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def prose_of(text: str) -> str:
    """The page without code: a comment of Python is no heading, and a shell's variable is no formula."""
    return FENCE.sub("", text)


def cells_of(text: str) -> list[str]:
    """The code of the cells. The alternative texts of pictures, which are translated, are in their headers."""
    return [CELL_HEADER.sub("", body) for _, kind, body in FENCE.findall(text) if kind.strip() == "{code-cell}"]


def headers_of(text: str) -> list[str]:
    found = [CELL_HEADER.match(body) for _, kind, body in FENCE.findall(text) if kind.strip() == "{code-cell}"]
    return [match.group() if match else "" for match in found]


def unindented(formula: str) -> str:
    return "".join(formula.split())


def test_both_languages_have_the_same_pages() -> None:
    assert sorted(path.name for path in CHINESE.glob("*.md")) == PAGES
    assert len(CHAPTERS) == 6


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_both_languages_is_the_same(name: str) -> None:
    english, chinese = (cells_of(text_of(folder, name)) for folder in (ENGLISH, CHINESE))
    assert english == chinese
    assert len(english) >= (0 if name == "index.md" else 10)


@pytest.mark.parametrize("name", PAGES)
def test_the_formulas_of_both_languages_are_the_same(name: str) -> None:
    english, chinese = (prose_of(text_of(folder, name)) for folder in (ENGLISH, CHINESE))
    displayed = [list(map(unindented, DISPLAYED.findall(text))) for text in (english, chinese)]
    assert displayed[0] == displayed[1]
    # The order of words differs, so the order of the formulas within a sentence may differ.
    inline = [sorted(map(unindented, INLINE.findall(DISPLAYED.sub("", text)))) for text in (english, chinese)]
    assert inline[0] == inline[1]


@pytest.mark.parametrize("name", PAGES)
def test_the_headings_and_tables_of_both_languages_are_the_same(name: str) -> None:
    english, chinese = (prose_of(text_of(folder, name)) for folder in (ENGLISH, CHINESE))
    assert HEADING.findall(english) == HEADING.findall(chinese)
    rows = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in (english, chinese)]
    assert rows[0] == rows[1]
    exercises = [re.findall(r"^\*\*(\d\.\d)\*\*", text, re.MULTILINE) for text in (english, chinese)]
    assert exercises[0] == exercises[1]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_exercise_has_a_solution(name: str) -> None:
    exercises, solutions = text_of(ENGLISH, name).split("\n## Exercises\n")[1].split("\n## Solutions\n")
    numbers = [re.findall(r"^\*\*(\d\.\d)\*\*", part, re.MULTILINE) for part in (exercises, solutions)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) >= 3


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_picture_has_an_alternative_text_in_the_language_of_its_page(name: str) -> None:
    for folder, translated in ((ENGLISH, False), (CHINESE, True)):
        text = text_of(folder, name)
        for header, code in zip(headers_of(text), cells_of(text), strict=True):
            draws = "plt.show()" in code and "def " not in code.split("plt.show()")[0].rsplit("\n\n", 1)[-1]
            draws = draws or re.search(r"^(plots\.(?!confusion_counts)|bars\(|show_mistakes\()", code, re.MULTILINE)
            alternative = re.search(r"^    alt: (.*)$", header, re.MULTILINE)
            assert bool(draws) == bool(alternative), code
            if alternative:
                assert bool(CHINESE_LETTER.search(alternative.group(1))) == translated


@pytest.mark.parametrize("name", CHAPTERS)
def test_formulas_are_numbered_in_order(name: str) -> None:
    numbers = re.findall(r"\\tag\{(\d\.\d+)\}", text_of(ENGLISH, name))
    chapter = name[0]
    assert numbers == [f"{chapter}.{index}" for index in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("name", PAGES)
def test_references_to_formulas_lead_to_a_formula(name: str) -> None:
    tags = {tag for page in CHAPTERS for tag in re.findall(r"\\tag\{(\d\.\d+)\}", text_of(ENGLISH, page))}
    for folder in (ENGLISH, CHINESE):
        prose = DISPLAYED.sub("", prose_of(text_of(folder, name)))
        assert set(re.findall(r"\((\d\.\d+)\)", prose)) <= tags


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_offers_its_notebook(name: str) -> None:
    for folder in (ENGLISH, CHINESE):
        assert f"<{name.removesuffix('.md')}.ipynb>`" in text_of(folder, name)


def test_the_pages_need_no_network() -> None:
    for name in CHAPTERS:
        code = "\n".join(cells_of(text_of(ENGLISH, name)))
        assert not re.search(r"https?:|download\(|urllib|requests", code)
        # Fashion-MNIST is loaded from the clone. The complete set is only for readers without one.
        assert set(re.findall(r'data\.load\("([\w-]+)"', code)) <= {"mnist5k", "folder", "fashion-mnist"}
    assert (ENGLISH / "fashion.npz").stat().st_size > 1_000_000


def test_a_translation_gets_the_results_of_its_page_and_keeps_its_alternative_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "needs the packages of the documentation"
    main = pytest.importorskip("jupyter_cache.cache.main", reason=reason)
    base = pytest.importorskip("jupyter_cache.base", reason=reason)
    pytest.importorskip("myst_nb", reason=reason)
    import nbformat

    for name in ("create_hashed_notebook", "merge_match_into_notebook"):
        monkeypatch.setattr(main.JupyterCacheBase, name, getattr(main.JupyterCacheBase, name))  # restored afterwards
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import execution  # type: ignore[import-not-found]

    def notebook(alternative: str) -> Any:
        cell = nbformat.v4.new_code_cell("1 + 1", metadata={"mystnb": {"image": {"alt": alternative}}})
        return nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": ""}})

    page, translation = notebook("a picture"), notebook("一幅图")
    page.cells[0].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"})]
    execution.share_results()
    cache = main.JupyterCacheBase(tmp_path)
    cache.cache_notebook_bundle(base.CacheBundleIn(page, "page"), check_validity=False)
    cache.merge_match_into_notebook(translation)
    (cell,) = translation.cells
    assert cell.outputs[0]["data"]["text/plain"] == "2"
    assert cell.metadata["mystnb"]["image"]["alt"] == "一幅图"


def test_labels_of_pictures_are_translated_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import labels  # type: ignore[import-not-found]

    missing: set[str] = set()
    assert labels.translated("padding 1\noutput 7x7", missing) == "填充 1\n输出 7x7"
    assert labels.translated("SGD, learning rate 0.9: distance 0.2 after 80 steps", missing).endswith("80 步后距离 0.2")
    assert [labels.translated(text, missing) for text in ("", "-0.5", "$p_1$", "损失")] == ["", "-0.5", "$p_1$", "损失"]
    assert not missing
    assert labels.translated("a new label", missing) == "a new label"
    assert missing == {"a new label"}


def test_the_table_of_labels_has_only_labels_that_the_code_draws() -> None:
    table = json.loads((DOCS / "zh" / "labels.json").read_text(encoding="utf-8"))
    folder = DOCS.parent / "fastconv" / "classifier"
    code = "".join(path.read_text() for path in [*folder.rglob("*.py"), *ENGLISH.glob("*.md")])
    parts = {line: re.findall(r"[A-Za-z][A-Za-z' -]*[A-Za-z]|[A-Za-z]", line) for line in table}
    assert [line for line, words in parts.items() if any(word not in code for word in words)] == []


def test_chinese_pages_show_the_pictures_with_chinese_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("myst_nb", reason="needs the packages of the documentation")
    import nbformat

    monkeypatch.syspath_prepend(DOCS / "_ext")
    import execution
    import labels

    def drawn(**more: str) -> Any:
        output = nbformat.v4.new_output("display_data", {"image/png": "English", **more})
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("plot()", outputs=[output])])

    both = json.dumps({"picture": "Chinese", "missing": ["a new label"]})
    for in_chinese, picture, missing in ((False, "English", set()), (True, "Chinese", {"a new label"})):
        notebook = drawn(**{labels.TYPE: both})
        assert execution.choose_pictures(notebook, in_chinese) == missing
        assert notebook.cells[0].outputs[0]["data"] == {"image/png": picture}
    with pytest.raises(RuntimeError, match="no drawing with Chinese labels"):
        execution.choose_pictures(drawn(), in_chinese=True)
