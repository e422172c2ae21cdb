"""Runs the code blocks of one page in order, as a reader would: files, commands, requests.

- A block with a title is written to that file. A Python file is served, tested or executed.
- ``python`` without a title is a script. What it prints must be the comments of its ``print`` lines.
- ``py`` is a signature or an excerpt, which is only parsed.
- ``toml`` without a title, or with the title ``embedroute.toml``, is a config without mistakes.
- ``sh``: a command that serves starts a real server, ``curl`` sends a request to the last one, and
  ``embedroute`` runs. Other commands are only parsed.
- ``json`` after ``curl`` is the body of its response, ``http`` the status and headers, and ``text``
  after ``embedroute`` is its output. ``…`` in them matches anything.
"""

import ast
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from string import Template

import httpx2

from embedroute import ConfigError, Gateway
from tests.support.documents import ROOT
from tests.support.forked import (
    Place,
    run_code,
    run_embedroute,
    run_file,
    run_tests,
    run_to_end,
    run_uvicorn,
    serving_in,
)
from tests.support.pages import Block

LOCAL = "http://127.0.0.1:8000"
"""The address of every server in the documentation."""
NOT_RUN = frozenset(
    {
        *("cd", "docker", "git", "granian", "hypercorn", "npm", "npx", "openapi-generator-cli"),
        *("pip", "pytest", "python", "uv"),
    }
)
"""Commands that are only parsed: they install something, or their server is tested elsewhere."""
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
SERVE = ("--host", "127.0.0.1", "--port", "0", "--no-access-log")
"""Arguments of uvicorn."""
_SECRET = re.compile(r'"env:(\w+)"')
_EXIT_STATUS = re.compile(r"# exit status (\d+)")


class PageSession:
    """A directory, its files and at most one server, in which a page's blocks run."""

    def __init__(self, directory: Path, blocks: list[Block]) -> None:
        self.directory = directory
        self.environ: dict[str, str] = {
            name: f"test-{name}" for block in blocks for name in _SECRET.findall(block.code)
        }
        self.url = ""
        self.response: httpx2.Response | None = None
        self.is_shown = False
        self.output = ""
        self.unused: dict[str, Block] = {}
        self._server = ExitStack()
        self._runners: Mapping[str, Callable[[Block], None]] = {
            "python": self._run_script,
            "py": self._parse,
            "toml": self._load_config,
            "sh": self._run_commands,
            "json": self._compare_body,
            "http": self._compare_headers,
            "text": self._compare_output,
        }

    def run(self, blocks: list[Block]) -> None:
        """Run the blocks that are not marked."""
        with self._server:
            for block in blocks:
                if not block.reason:
                    self._run_block(block)
            self._forget_response()
            for name in list(self.unused):
                self._use_file(name)

    def _run_block(self, block: Block) -> None:
        if block.language not in {"json", "http", "text"}:
            self._forget_response()
        if not block.title:
            self._runners[block.language](block)
            return
        if block.title in self.unused:
            self._use_file(block.title)
        path = self.directory / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code, encoding="utf-8")
        if block.title == "embedroute.toml":
            self._load_config(block)
        elif block.language == "python":
            self.unused[block.title] = block

    def _forget_response(self) -> None:
        """End the blocks that show a response. One that the page does not show must be a success."""
        if self.response is not None and not self.is_shown:
            assert self.response.is_success, self.response.text
        self.response = None
        self.output = ""
        self.is_shown = False

    def _use_file(self, name: str) -> None:
        del self.unused[name]
        run_it = run_tests if Path(name).name.startswith("test_") else run_file
        status, output = run_to_end(self._place(), run_it, name)
        assert status == 0, output

    def _place(self) -> Place:
        acme = ROOT / "example_app" / "acme_backend"  # as if that were installed
        return Place(directory=self.directory, environ=self.environ, path=[acme, ROOT])

    def _run_script(self, block: Block) -> None:
        """Run the block and the tests that it holds; compare what it prints with its comments."""
        tests = [
            node.name
            for node in ast.parse(block.code).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
        ]
        code = block.code.replace(LOCAL, self.url or LOCAL)
        script = "\n".join([code, *(f"{name}()" for name in tests)])
        status, printed = run_to_end(self._place(), run_code, script)
        assert status == 0, printed
        expected = "\n".join(re.findall(r"print\(.*\)  # (.*)", block.code))
        if expected:  # else the output is at most a warning in the log
            assert matches(printed, expected), (block.line, printed)

    def _parse(self, block: Block) -> None:
        compile(block.code, f"line {block.line}", "exec", ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT)

    def _load_config(self, block: Block) -> None:
        """Load a config; it may use the example backend, which is not installed here."""
        path = self.directory / (block.title or "snippet.toml")
        path.write_text(block.code, encoding="utf-8")
        mistakes = mistakes_of(path, {**os.environ, **self.environ})
        assert [mistake for mistake in mistakes if '"acme"' not in mistake] == [], block.line

    def _run_commands(self, block: Block) -> None:
        subprocess.run(["/bin/sh", "-n"], input=block.code, text=True, check=True)
        for line in _commands(block.code):
            if words := shlex.split(line, comments=True):
                self._run_command(words, line)

    def _run_command(self, words: list[str], line: str) -> None:
        if words[0] == "export" or "=" in words[0]:
            self.environ.update(word.split("=", 1) for word in words if "=" in word)
        elif words[0] == "curl":
            self._forget_response()
            self.response = self._send(words[1:])
        elif words[0] == "uvicorn":
            self._serve_app(words[1:])
        elif words[:2] == ["embedroute", "serve"]:
            self._start(run_embedroute, [*words[1:], "--port", "0"])
        elif words[0] == "embedroute":
            status = int(found[1]) if (found := _EXIT_STATUS.search(line)) else 0
            self._run_embedroute(words[1:], status)
        elif words[0] == "scripts/serve":
            self._start(run_uvicorn, [*SERVE, "example_app.main:app"])
        elif "/" in words[0]:
            assert os.access(ROOT / words[0], os.X_OK), line
        else:
            assert words[0] in NOT_RUN, f"unknown command: {line}"

    def _serve_app(self, words: list[str]) -> None:
        """Serve an app of the page. The command of an app that the page does not show is parsed."""
        name = words[0].partition(":")[0] + ".py"
        if (self.directory / name).exists():
            self.unused.pop(name, None)
            self._start(run_uvicorn, [*SERVE, *words])

    def _start(self, function: Callable[[list[str]], None], words: list[str]) -> None:
        self._server.close()
        self.url = self._server.enter_context(serving_in(self._place(), function, words))

    def _run_embedroute(self, words: list[str], status: int) -> None:
        ended_with, self.output = run_to_end(self._place(), run_embedroute, words)
        assert ended_with == status, (words, self.output)

    def _send(self, words: list[str]) -> httpx2.Response:
        """Send the request of a ``curl`` command to the server that runs."""
        assert self.url, "no server runs: start one on this page"
        headers: dict[str, str] = {}
        url, body, method = "", None, ""
        options = iter(words)
        for word in options:
            if word == "-H":
                name, _, value = next(options).partition(":")
                headers[name.lower()] = Template(value.strip()).substitute(self.environ)
            elif word == "-d":
                body = next(options)
            elif word == "-X":
                method = next(options)
            elif word not in {"-i", "-s"}:
                assert word.startswith(LOCAL), word
                url = word.replace(LOCAL, self.url)
        if body is not None:
            json.loads(body)
            headers.setdefault("content-type", "application/x-www-form-urlencoded")
        method = method or ("GET" if body is None else "POST")
        return httpx2.request(method, url, headers=headers, content=body, timeout=120)

    def _compare_body(self, block: Block) -> None:
        self.is_shown = True
        expected = json.loads(block.code)
        if self.response is not None:
            body = self.response.json()
            assert matches_json(body, expected), (block.line, json.dumps(body, ensure_ascii=False))

    def _compare_headers(self, block: Block) -> None:
        assert self.response is not None, block.line
        self.is_shown = True
        status, *lines = block.code.splitlines()
        response = self.response
        assert status.split()[1] == str(response.status_code), (block.line, response.text)
        for line in filter(None, lines):
            name, _, value = line.partition(": ")
            assert matches(response.headers.get(name, ""), value), (line, response.headers)

    def _compare_output(self, block: Block) -> None:
        if self.output:
            assert matches(self.output, block.code), (block.line, self.output)


def _commands(script: str) -> Iterator[str]:
    """Yield the commands of a script; a quoted argument may have several lines."""
    command = ""
    for line in script.replace("\\\n", " ").splitlines():
        command += line
        try:
            shlex.split(command, comments=True)
        except ValueError:  # a quotation is not closed yet
            command += "\n"
        else:
            yield command
            command = ""


def matches(text: str, expected: str) -> bool:
    """Whether ``text`` is ``expected``, apart from white space and what ``…`` replaces."""
    pieces = [r"\s+".join(map(re.escape, piece.split())) for piece in expected.split("…")]
    return re.fullmatch(r"\s*" + r"\s*.*\s*".join(pieces) + r"\s*", text, re.DOTALL) is not None


def matches_json(value: object, expected: object) -> bool:
    """Whether ``value`` is ``expected``, where ``…`` in a string matches any text, alone anything."""
    if expected == "…":
        return True
    match value, expected:
        case str(), str():
            return matches(value, expected)
        case dict(), dict():
            return value.keys() == expected.keys() and all(
                matches_json(value[name], expected[name]) for name in expected
            )
        case list(), list():
            return len(value) == len(expected) and all(map(matches_json, value, expected))
        case _:
            return value == expected


def mistakes_of(config: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the mistakes of a config file."""
    try:
        Gateway.from_file(config, environ=environ)
    except ConfigError as error:
        return error.mistakes
    return ()
