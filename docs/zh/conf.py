"""Settings of Sphinx for the Chinese pages: those of docs/conf.py in another language."""

import sys
from pathlib import Path

import jieba

jieba.setLogLevel("WARNING")  # it divides the pages into words for the search
sys.path.insert(0, str(Path(__file__).parents[1]))

from conf import *  # noqa: F403

language = "zh_CN"
html_title = "fastconv 中文教程"
exclude_patterns: list[str] = []
measured_pages: list[str] = []  # the cache has the results of the English pages
