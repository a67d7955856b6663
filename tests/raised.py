"""The whole texts of ppvae's errors: whatever error ``pytest.raises`` ends on is to stand, word for word, in raised.txt.

    PPVAE_WRITE_MESSAGES=1 pytest FILES      # adds what these tests raise; without raised.txt, writes it anew

No process tells another what it has seen: each compares with the file, which only the variable lets them write.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from unittest import mock

import filelock
import pytest

from ppvae.checks_report import Finding
from ppvae.errors import PpvaeError

ROOT = Path(__file__).resolve().parents[1]
TRANSCRIPT = Path(__file__).with_name("raised.txt")
FOLDERS = ("ppvae", "analysis", "models", "guides")
ERRORS = ROOT / "ppvae" / "errors.py"
WRITES = "PPVAE_WRITE_MESSAGES"

HEAD = """Every error of ppvae that a test catches, by module: its class, and its whole text. HERE is a test's folder; PID, HOST,
PORT, FREE, SHA256, LINE and ... stand for what varies too. tests/raised.py says how this is written and held.
"""

# What is another on another machine, in another process or by another version, and what stands for it here.
VARIES = (
    (r"(/[\w.-]+)*/pytest-of-[\w.-]+/pytest-\d+(/popen-gw\d+)?/[\w-]+", "HERE"),  # tmp_path
    (r"(/[\w.-]+)*/tmp[a-z0-9_]{8}\b", "HERE"),  # tempfile.mkdtemp
    (r"(/[\w.-]+)*/tests/(\w+\.py):\d+", r"tests/\2:LINE"),
    (r"\bprocess \d+ on .+", "process PID on HOST"),
    (r"(80 04 95) [0-9a-f]{2}", r"\1 .."),  # a pickle's, and the length of what it names
    (r"\w+ \w+[\w ]* \[127\.0\.0\.1\]:\d+(: [\w ]+)?", "what gloo says"),  # whoever notices first
    (r"\b127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"\b[\d,]+ bytes free\b", "FREE bytes free"),
    (r"(\d\.\d{3})\d+", r"\1..."),  # measured, and rounded otherwise by another processor
    (r"(moved by) \S+ nats", r"\1 ... nats"),
    (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}(?=\.\.\.)", "SHA256"),  # of data that another processor may round otherwise
    # Other libraries' words for what is wrong with a file, or with the arguments of a class
    (r"(does not unpack|cannot be read|cannot be read as such) \(.+\)", r"\1 (...)"),
    (r"(names parts that cannot be made): .+", r"\1: ..."),
)

Text = tuple[str, str]  # a module's file, and an error's class and text


def told(error: PpvaeError | Finding) -> str:
    """Class and text of an error, or of a finding of ``check``, without what varies."""
    text = f"{type(error).__name__}: {error}"
    for pattern, stands in VARIES:
        text = re.sub(pattern, stands, text)
    return text


def place(trace: TracebackType | None) -> str:
    """The file that raised it, relative to the root: its caller's where errors.py checked a number for it; "" where it is none of ours."""
    files = [Path(frame.f_code.co_filename).resolve() for frame, _ in traceback.walk_tb(trace)]
    while files and files[-1] == ERRORS:
        files.pop()
    file = files[-1] if files else ROOT
    return str(file.relative_to(ROOT)) if any(file.is_relative_to(ROOT / folder) for folder in FOLDERS) else ""


def read(transcript: str) -> set[Text]:
    """What a transcript holds: blocks between empty lines, a block that is underlined heads those below it."""
    found, heading = set(), ""
    for block in transcript.split("\n\n"):
        lines = block.strip("\n").splitlines()
        if len(lines) == 2 and set(lines[1]) == {"-"}:
            heading = lines[0]
        elif heading:
            found.add((heading, "\n".join(lines)))
    return found


def written(texts: set[Text]) -> str:
    """The transcript of these texts."""
    modules = defaultdict(list)
    for module, text in sorted(texts):
        modules[module].append(text)
    return HEAD + "".join(f"\n{module}\n{'-' * len(module)}\n\n" + "\n\n".join(found) + "\n" for module, found in modules.items())


def write(text: Text) -> None:
    """Add a text to the transcript, which other processes may write too."""
    with filelock.FileLock(Path(tempfile.gettempdir()) / "ppvae-raised.lock"):
        texts = read(TRANSCRIPT.read_text()) if TRANSCRIPT.exists() else set()
        if text not in texts:
            TRANSCRIPT.write_text(written({*texts, text}))


KNOWN = {text for _, text in read(TRANSCRIPT.read_text())} if TRANSCRIPT.exists() else set()


def compare(error: PpvaeError | Finding, module: str) -> None:
    """Fail where the transcript does not have the text of an error, or add it below a module, where the variable asks for that."""
    text = told(error)
    if os.environ.get(WRITES):
        write((module, text))
    elif text not in KNOWN:
        pytest.fail(
            f"no text of {TRANSCRIPT.name} is that of this error:\n\n{text}\n\n"
            f"If it is well said: {WRITES}=1 pytest FILE adds it; then delete what it takes the place of."
        )


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Meanwhile each error of ours that ``pytest.raises`` ends on is compared with the transcript."""
    ends = pytest.RaisesExc.__exit__

    def compared(self, kind, error, trace):
        is_expected = ends(self, kind, error, trace)
        if is_expected and isinstance(error, PpvaeError) and (module := place(error.__traceback__)):
            compare(error, module)
        return is_expected

    with mock.patch.object(pytest.RaisesExc, "__exit__", compared):
        yield


def varies(item: pytest.Item) -> bool:
    """Whether a test draws what its errors speak of, so that they have other texts each time."""
    drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    return drawn or any(item.get_closest_marker(tier) for tier in ("statistical", "soak"))
