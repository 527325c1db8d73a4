"""Settings of Sphinx for the Chinese pages: those of docs/conf.py in another language."""

import sys
from pathlib import Path

import jieba
from sphinx.search.zh import SearchChinese

sys.path.insert(0, str(Path(__file__).parents[1]))

from conf import *  # noqa: F403

extensions = [*extensions, "chinese_theme"]  # noqa: F405
language = "zh_CN"
copyright = "fastconv 的开发者，MIT 许可证"
html_title = "fastconv 中文教程"
exclude_patterns: list[str] = []
measured_pages: list[str] = []  # the cache has the results of the English pages
nb_code_prompt_show = "展开"
nb_code_prompt_hide = "收起"

jieba.setLogLevel("WARNING")  # it divides the pages into words for the search
# Sphinx 9.0.4 gives Chinese pages the stemmer of English, but its script asks for a "ChineseStemmer".
SearchChinese.language_name = "English"
# Terms that jieba would divide. A reader searches for the whole term.
html_search_options = {"dict": str(Path(__file__).parent / "terms.txt")}
