"""Hooks of ``mkdocs build``: links of the pages to files of the repository become absolute."""

import logging
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks.repository")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Use the repository and the site of ``pyproject.toml``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = {name.lower(): url for name, url in project.get("urls", {}).items()}
    config.repo_url = urls.get("repository") or urls.get("source") or urls.get("homepage")
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links out of ``docs`` by links to the repository, or by their text without one."""
    del files
    folder = Path(page.file.abs_src_path).parent

    def replace(match: re.Match[str]) -> str:
        text, link, anchor = match.groups(default="")
        target = (folder / link).resolve()
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not target.is_relative_to(ROOT) or not target.exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, link)
            return text
        path = target.relative_to(ROOT).as_posix()
        return f"[{text}]({config.repo_url}/blob/main/{path}{anchor})" if config.repo_url else text

    return LINK.sub(replace, markdown)
